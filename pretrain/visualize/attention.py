"""Attention weights of an encoder's blocks, computed again: the fused attention does not return them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hear_m2d.model.encoder import SpectrogramEncoder


def attention_weights(block: Any, tokens: Tensor, queries: Sequence[int] | None = None) -> Tensor:
    """Return attention weights: softmax(q k / sqrt(head features)) of a timm block's own projections.

    Args:
        block: A timm ``Block``.
        tokens: Its input, (batch, tokens, width).
        queries: Indices of the tokens whose attention is wanted; all by default.

    Returns:
        (batch, heads, queries, tokens); each row sums to 1.
    """
    attn = block.attn
    normed = block.norm1(tokens)
    batch, count, _ = normed.shape
    qkv = attn.qkv(normed).reshape(batch, count, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])  # (batch, heads, tokens, head features)
    if queries is not None:
        q = q[:, :, list(queries)]
    scores: Tensor = (q * attn.scale) @ k.transpose(-2, -1)
    return scores.softmax(-1)


@torch.no_grad()
def attention_maps(
    encoder: SpectrogramEncoder, x: Tensor, *, queries: Sequence[int], layers: Sequence[int]
) -> Tensor:
    """Return the attention of chosen tokens of a window, by layer and head; the encoder sees every patch.

    Args:
        encoder: The encoder, in eval mode.
        x: One standardized window, (1, 1, mels, frames) in whole patches.
        queries: Indices of tokens; the class token, if the encoder has one, is token 0.
        layers: Indices of blocks from 0; negative ones count from the last.

    Returns:
        (layers, heads, queries, tokens); each row sums to 1.
    """
    wanted = [layer % len(encoder.blocks) for layer in layers]
    maps: dict[int, Tensor] = {}
    tokens = encoder.with_class_token(encoder.embed(x))
    for index, block in enumerate(encoder.blocks[: max(wanted) + 1]):
        if index in wanted:
            maps[index] = attention_weights(block, tokens, queries)[0]
        tokens = block(tokens)
    return torch.stack([maps[index] for index in wanted])
