"""The transformer over visible and mask tokens: M2D's predictor, MSM-MAE's decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hear_m2d.model.encoder import (
    EncoderConfig,
    attention_kernels,
    initialize,
    sincos_positions,
    transformer_blocks,
)
from hear_m2d.pretrain.objectives.masking import Mask, take


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder.

    Attributes:
        width: Features of a token.
        depth: Transformer blocks.
        heads: Attention heads.
        positions: ``2d`` as the encoder's, or ``1d``: interleaved sinusoids over the flattened grid.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    positions: Literal["2d", "1d"] = "2d"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} = {getattr(self, name)} must be at least 1")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(
                f"decoder.width = {self.width} must be a multiple of 4 and of decoder.heads, {self.heads}"
            )


def sinusoid_positions(width: int, count: int) -> Tensor:
    """Return the 1-D table (count, width) of the first MSM-MAE: even features sine, odd ones cosine."""
    feature = np.arange(width)
    angle = np.outer(np.arange(count), 10000.0 ** (-2.0 * (feature // 2) / width))
    return torch.from_numpy(np.where(feature % 2, np.cos(angle), np.sin(angle))).float()


class Decoder(nn.Module):
    """Encoded visible tokens → an output per patch.

    Args:
        config: Sizes.
        encoder: Sizes of the encoder that feeds it.
        out_features: Features of an output: the encoder's width (M2D), or a patch's pixels (MSM-MAE).
    """

    pos_embed: Tensor

    def __init__(self, config: DecoderConfig, *, encoder: EncoderConfig, out_features: int) -> None:
        super().__init__()
        self.class_token = encoder.class_token
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        rows, columns = encoder.grid
        if config.positions == "2d":
            table = sincos_positions(config.width, encoder.grid)
        else:
            table = sinusoid_positions(config.width, rows * columns)
        self.register_buffer("pos_embed", table[None], persistent=False)  # the class token's row is zeros
        self.blocks = transformer_blocks(config.width, depth=config.depth, heads=config.heads)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.pred = nn.Linear(config.width, out_features)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, z: Tensor, mask: Mask, *, only_masked: bool = True) -> Tensor:
        """Predict from the encoded visible tokens.

        Attention does not see order once positions are added, so the tokens stay in the mask's order:
        no un-shuffling before the blocks, none after.

        Args:
            z: Encoder output, (batch, [1 +] visible, encoder width).
            mask: Which patches z is of.
            only_masked: Outputs at the masked patches, in the mask's order; else at all, in grid order.

        Returns:
            (batch, masked, out_features), or (batch, patches, out_features).
        """
        positions = self.pos_embed.expand(len(z), -1, -1)
        x = self.embed(z)
        first, visible = (x[:, :1], x[:, 1:]) if self.class_token else (x[:, :0], x)
        positions = positions.to(x.dtype)
        visible = visible + take(positions, mask.visible)  # (batch, visible, width)
        masked = self.mask_token.to(x.dtype) + take(positions, mask.masked)  # (batch, masked, width)
        x = torch.cat([first, visible, masked], dim=1)
        with attention_kernels(x.device):
            for block in self.blocks:
                x = block(x)
        x = x[:, first.shape[1] :]  # (batch, visible + masked, width)
        x = x[:, visible.shape[1] :] if only_masked else take(x, mask.restore())
        out: Tensor = self.pred(self.norm(x))
        return out
