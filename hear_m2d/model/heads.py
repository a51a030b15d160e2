"""Optional parts after the encoder: a classifier, and M2D-CLAP's audio projectors.

A projector turns all tokens of a clip into one vector in the space of the text embeddings. 2024: the mean
over tokens through a small MLP. 2025: the semantic projector, a learned token that attends to all tokens
(arXiv 2503.22104). Settings as published; the text encoder is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hear_m2d.utils.errors import InputError, check_integers

KINDS = ("mean", "semantic")
LARGEST, DEEPEST = 10**6, 100  # limits that protect against malicious configs


class ClassifierHead(nn.Module):
    """BatchNorm without affine, then a linear layer: pooled features (batch, width) → logits."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        logits: Tensor = self.linear(self.norm(x))
        return logits


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of an audio projector."""

    kind: str = "mean"  # mean (M2D-CLAP 2024) or semantic (2025)
    width: int = 768  # features of its result
    hidden: int = 768  # hidden features of its MLP, or of each block's
    depth: int = 0  # blocks of a semantic projector; 0 otherwise

    def __post_init__(self) -> None:
        check_integers(minimum=1, width=self.width, hidden=self.hidden)
        check_integers(minimum=0, depth=self.depth)
        if max(self.width, self.hidden) > LARGEST or self.depth > DEEPEST:
            raise InputError(f"a projector is not as large as {self}")
        if self.kind not in KINDS or (self.depth > 0) != (self.kind == "semantic"):
            raise InputError(f"a projector must be mean without blocks, or semantic with blocks, not {self}")


class MeanProjector(nn.Module):
    """Mean over tokens of ``width`` features, Linear, ReLU, Linear."""

    def __init__(self, width: int, config: ProjectorConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, config.hidden)
        self.out = nn.Linear(config.hidden, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (batch, tokens, width) to (batch, config.width)."""
        projected: Tensor = self.out(torch.relu(self.hidden(tokens.mean(1))))
        return projected


class SemanticProjector(nn.Module):
    """A learned token before all others, pre-norm blocks of one head, then that token's LayerNorm.

    The LayerNorms have PyTorch's eps of 1e-5, unlike the encoder's.
    """

    def __init__(self, width: int, config: ProjectorConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block  # heavy: imported where a projector is built

        # timm rounds width * ratio down: half a feature more makes that exact.
        ratio = (config.hidden + 0.5) / width
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(dim=width, num_heads=1, mlp_ratio=ratio, qkv_bias=True, norm_layer=nn.LayerNorm)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (batch, tokens, width) to (batch, width)."""
        x = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        projected: Tensor = self.norm(x[:, 0])
        return projected


def make_projector(width: int, config: ProjectorConfig) -> nn.Module:
    """Return the projector of a config, for tokens of that width."""
    if config.kind == "mean":
        return MeanProjector(width, config)
    if config.width != width:
        raise InputError(
            f"a semantic projector gives {width} features, as its tokens have, not {config.width}"
        )
    return SemanticProjector(width, config)
