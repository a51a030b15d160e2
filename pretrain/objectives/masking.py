"""Random masking of patches: which tokens are visible, which are masked, as indices to gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def visible_count(patches: int, ratio: float) -> int:
    """Return how many patches stay visible; the float product is truncated, as published."""
    return int(patches * (1 - ratio))


@dataclass(frozen=True)
class Mask:
    """Indices into the flattened grid, in random order (positions are added before, so order is free).

    Attributes:
        visible: (batch, visible).
        masked: (batch, masked).
    """

    visible: Tensor
    masked: Tensor

    def restore(self) -> Tensor:
        """Return the permutation that puts [visible, masked] back into grid order, (batch, patches)."""
        return torch.argsort(torch.cat([self.visible, self.masked], dim=1), dim=1)

    def as_grid(self) -> Tensor:
        """Return 1 at masked patches and 0 at visible ones, (batch, patches)."""
        grid = torch.zeros(len(self.visible), self.visible.shape[1] + self.masked.shape[1])
        return grid.to(self.masked.device).scatter(1, self.masked, 1.0)


def mask_noise(seed: int, step: int, batch: int, patches: int) -> Tensor:
    """Return the noise that draws a step's masks, (batch, patches): a function of (seed, step)."""
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(word))


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Draw a mask per sample: the patches with the least noise stay visible (MAE; M2D section III).

    Args:
        noise: Uniform, (batch, patches).
        ratio: Share of the patches to mask.
    """
    order = torch.argsort(noise, dim=1, stable=True)  # equal numbers: the same order on every device
    keep = visible_count(noise.shape[1], ratio)
    return Mask(visible=order[:, :keep], masked=order[:, keep:])


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens (batch, patches, width) at indices (batch, n): (batch, n, width)."""
    return torch.gather(tokens, 1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
