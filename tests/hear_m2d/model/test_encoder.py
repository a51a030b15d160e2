"""The encoder against the reference positions, a slow transformer in float64, and its published sizes."""

import math
import re

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import (
    SIZES,
    EncoderConfig,
    SpectrogramEncoder,
    patchify,
    sincos_positions,
    unpatchify,
)


def small(**changes) -> SpectrogramEncoder:
    """An encoder of a few numbers, every one of them random."""
    settings = {"input_size": (8, 12), "patch_size": (4, 3), "width": 8, "depth": 2, "heads": 2, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = SpectrogramEncoder(EncoderConfig(**settings))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6) * weight + bias


def slow_block(tokens: list[np.ndarray], w: dict[str, np.ndarray], heads: int) -> list[np.ndarray]:
    """One pre-norm block, token by token and head by head."""
    width = len(tokens[0])
    size = width // heads
    normed = [layer_norm(t, w["norm1.weight"], w["norm1.bias"]) for t in tokens]
    qkv = [w["attn.qkv.weight"] @ t + w["attn.qkv.bias"] for t in normed]
    mixed = []
    for i in range(len(tokens)):
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query = qkv[i][:width][part]
            scores = [query @ one[width : 2 * width][part] / math.sqrt(size) for one in qkv]
            shares = np.exp(np.array(scores) - max(scores))
            shares /= shares.sum()
            parts.append(sum(s * one[2 * width :][part] for s, one in zip(shares, qkv, strict=True)))
        mixed.append(tokens[i] + w["attn.proj.weight"] @ np.concatenate(parts) + w["attn.proj.bias"])
    out = []
    for t in mixed:
        hidden = w["mlp.fc1.weight"] @ layer_norm(t, w["norm2.weight"], w["norm2.bias"]) + w["mlp.fc1.bias"]
        hidden = np.array([0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        out.append(t + w["mlp.fc2.weight"] @ hidden + w["mlp.fc2.bias"])
    return out


def slow_layers(encoder: SpectrogramEncoder, x: np.ndarray) -> list[np.ndarray]:
    """Every block's patch tokens for one spectrogram (mels, frames); the last one normed."""
    config = encoder.config
    w = {name: tensor.double().numpy() for name, tensor in encoder.state_dict().items()}
    (high, wide), (rows, columns) = config.patch_size, config.grid
    table = w["pos_embed"][0]
    first = 1 if config.class_token else 0
    tokens = [w["cls_token"][0, 0] + table[0]] if config.class_token else []
    for row in range(rows):
        for column in range(x.shape[1] // wide):
            patch = x[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            pixels = (w["patch_embed.proj.weight"][:, 0] * patch).sum((1, 2))
            tokens.append(pixels + w["patch_embed.proj.bias"] + table[first + row * columns + column])
    outputs = []
    for index in range(config.depth):
        block = {
            n.removeprefix(f"blocks.{index}."): t for n, t in w.items() if n.startswith(f"blocks.{index}.")
        }
        tokens = slow_block(tokens, block, config.heads)
        outputs.append(np.stack(tokens[first:]))
    outputs[-1] = np.stack([layer_norm(t, w["norm.weight"], w["norm.bias"]) for t in tokens[first:]])
    return outputs


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("frames", [12, 7, 3])
@torch.no_grad()
def test_encoder_equals_a_slow_transformer_in_float64(class_token, frames):
    encoder = small(class_token=class_token)
    x = torch.randn(2, 1, 8, frames, generator=torch.Generator().manual_seed(2))
    found = encoder.layers(x)
    for clip in range(2):
        expected = slow_layers(encoder, x[clip, 0].double().numpy())
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[clip].numpy(), other, atol=2e-5)
    assert torch.allclose(found[-1], encoder(x), atol=1e-6)


def test_positions_equal_the_published_tables(fixtures_dir):
    tables = np.load(fixtures_dir / "pos_embed.npz")
    names = [name for name in tables.files if name != "settings"]
    assert len(names) == 12
    for name in names:
        rows, columns, width = map(int, re.fullmatch(r"(\d+)x(\d+)_d(\d+)", name).groups())
        assert not tables[name][0].any()  # the class token's row
        found = sincos_positions(width, (rows, columns)).numpy()
        np.testing.assert_allclose(found, tables[name][1:], atol=1e-6, err_msg=name)


def test_positions_are_frequency_major_with_time_in_the_first_half():
    table = sincos_positions(8, (3, 5)).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row, column].numpy(), expected, atol=1e-7)


def test_positions_of_a_shorter_grid_are_a_column_subset():
    long = sincos_positions(64, (5, 38)).reshape(5, 38, 64)
    assert torch.equal(long[:, :13].reshape(-1, 64), sincos_positions(64, (5, 13)))


@torch.no_grad()
def test_a_short_window_uses_the_first_columns_of_every_row_of_the_stored_table():
    encoder = small()
    encoder.pos_embed.copy_(torch.randn(encoder.pos_embed.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.zeros(1, 1, 8, 6)
    bias = encoder.patch_embed.proj.bias
    found = (encoder.embed(x) - bias)[0].reshape(2, 2, 8)
    expected = encoder.pos_embed[0, 1:].reshape(2, 4, 8)[:, :2]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("patch", [(16, 16), (16, 8), (16, 4), (80, 2), (80, 4), (5, 3), (80, 1), (1, 7)])
def test_unpatchify_undoes_patchify_pixel_for_pixel(patch):
    high, wide = patch
    x = torch.randn(2, 1, 80, wide * 3, generator=torch.Generator().manual_seed(0))
    patches = patchify(x, patch)
    assert patches.shape == (2, 80 // high * 3, high * wide)
    for row in range(80 // high):
        for column in range(3):
            piece = x[:, 0, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            assert torch.equal(patches[:, row * 3 + column], piece.flatten(1))
    assert torch.equal(unpatchify(patches, patch, rows=80 // high), x)


def test_patchify_drops_frames_that_fill_no_patch():
    x = torch.randn(1, 1, 80, 50)
    assert torch.equal(patchify(x, (16, 16)), patchify(x[..., :48], (16, 16)))


@pytest.mark.parametrize("patch", [(16, 16), (16, 4), (80, 2)])
@torch.no_grad()
def test_patch_embedding_equals_its_convolution(patch):
    encoder = SpectrogramEncoder(
        EncoderConfig(input_size=(80, 64), patch_size=patch, width=16, depth=1, heads=1)
    )
    x = torch.randn(2, 1, 80, 64)
    expected = encoder.patch_embed.proj(x).flatten(2).transpose(1, 2)
    assert torch.allclose(encoder.patch_embed(x), expected, atol=1e-5)


@pytest.mark.parametrize("patch", [(16, 16), (16, 8), (16, 4), (80, 2), (80, 4), (8, 5), (40, 3)])
@pytest.mark.parametrize("frames", [16, 50, 201])
@torch.no_grad()
def test_any_input_and_patch_size_encodes(patch, frames):
    config = EncoderConfig(input_size=(80, frames), patch_size=patch, width=16, depth=1, heads=2)
    found = SpectrogramEncoder(config)(torch.randn(1, 1, 80, frames))
    assert found.shape == (1, (80 // patch[0]) * (frames // patch[1]), 16)
    assert config.column_width == 80 // patch[0] * 16


@pytest.mark.parametrize(
    ("size", "sizes"), [("tiny", (192, 12, 3)), ("small", (384, 12, 6)), ("large", (1024, 24, 16))]
)
def test_sizes_are_as_promised(size, sizes):
    assert SIZES[size] == sizes


def test_base_16x16_has_as_many_parameters_as_published():
    width, depth, heads = SIZES["base"]
    with torch.device("meta"):
        encoder = SpectrogramEncoder(EncoderConfig(width=width, depth=depth, heads=heads))
    assert sum(p.numel() for p in encoder.parameters()) == 85_254_144
    assert not isinstance(encoder.pos_embed, torch.nn.Parameter)


def test_every_parameter_gets_a_gradient():
    encoder = small()
    encoder(torch.randn(2, 1, 8, 12)).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_initial_weights_are_the_published_ones():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SpectrogramEncoder(EncoderConfig(width=192, depth=2, heads=3))
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any()
        elif name == "cls_token":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3)
        elif name.endswith("weight"):
            out, into = parameter.flatten(1).shape
            assert parameter.abs().max() <= math.sqrt(6 / (out + into)) + 1e-6
            assert parameter.std().item() == pytest.approx(math.sqrt(2 / (out + into)), rel=0.05)


def test_a_window_longer_than_the_input_is_refused_in_words():
    with pytest.raises(ValueError, match="longer than the 12"):
        small()(torch.zeros(1, 1, 8, 15))


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": (7, 3)}, {"patch_size": (4, 13)}, {"width": 0}, {"width": 10}, {"heads": 3},
        {"depth": -1}, {"input_size": (0, 12)},
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|tile|divide"):
        EncoderConfig(**{"input_size": (8, 12), "patch_size": (4, 3), "width": 8, "heads": 2, **wrong})
