"""The recomputed attention is the block's own: its output follows from the weights."""

import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig, SpectrogramEncoder
from hear_m2d.pretrain.visualize.attention import attention_maps, attention_weights


def small_encoder(*, class_token=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = EncoderConfig(
            input_size=(32, 64), patch_size=(16, 8), width=24, depth=3, heads=3, class_token=class_token
        )
        encoder = SpectrogramEncoder(config).double().eval()
        for block in encoder.blocks:  # fresh projections look everywhere alike: a wrong scale would hide
            block.attn.qkv.weight.data *= 4
            block.attn.qkv.bias.data.normal_()
    return encoder


def window(frames=64):
    return torch.randn(1, 1, 32, frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def output_by_hand(block, tokens, weights):
    """A pre-norm block, head by head, with given attention weights (heads, tokens, tokens)."""
    attn = block.attn
    width, per_head = tokens.shape[-1], tokens.shape[-1] // attn.num_heads
    values = torch.nn.functional.linear(
        block.norm1(tokens)[0], attn.qkv.weight[2 * width :], attn.qkv.bias[2 * width :]
    )  # (tokens, width)
    heads = [
        weights[head] @ values[:, head * per_head : (head + 1) * per_head] for head in range(attn.num_heads)
    ]
    mixed = tokens + attn.proj(torch.cat(heads, dim=-1))[None]
    return mixed + block.mlp(block.norm2(mixed))


@pytest.mark.parametrize("class_token", [True, False])
def test_each_blocks_output_follows_from_the_weights(class_token):
    encoder = small_encoder(class_token=class_token)
    with torch.no_grad():
        tokens = encoder.with_class_token(encoder.embed(window()))
        count = tokens.shape[1]
        maps = attention_maps(encoder, window(), queries=range(count), layers=range(3))
        for block, weights in zip(encoder.blocks, maps, strict=True):
            torch.testing.assert_close(
                output_by_hand(block, tokens, weights), block(tokens), atol=1e-9, rtol=0
            )
            tokens = block(tokens)


def test_the_weights_are_those_of_the_block_in_float32():
    encoder = small_encoder().float()
    with torch.no_grad():
        tokens = encoder.with_class_token(encoder.embed(window().float()))
        block = encoder.blocks[0]
        weights = attention_weights(block, tokens)[0]
        torch.testing.assert_close(output_by_hand(block, tokens, weights), block(tokens), atol=1e-5, rtol=0)


def test_chosen_queries_and_layers_are_rows_of_all():
    encoder = small_encoder()
    everything = attention_maps(encoder, window(), queries=range(17), layers=range(3))
    some = attention_maps(encoder, window(), queries=[0, 9], layers=[-1, 0])
    assert some.shape == (2, 3, 2, 17)
    torch.testing.assert_close(some[0], everything[2][:, [0, 9]])
    torch.testing.assert_close(some[1], everything[0][:, [0, 9]])
    torch.testing.assert_close(everything.sum(-1), torch.ones(3, 3, 17, dtype=torch.float64))
    assert everything.std(-1).min() > 0.01  # not all alike: the checks above compare something


def test_a_clip_shorter_than_the_input_has_the_attention_of_its_own_patches():
    encoder = small_encoder()
    maps = attention_maps(encoder, window(frames=24), queries=[0], layers=[1])
    assert maps.shape == (1, 3, 1, 1 + 2 * 3)
