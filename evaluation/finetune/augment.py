"""Augmentations of fine-tuning, in published order: mixup, log-mel, standardization, stripes, resize crop.

All random numbers come from the given generator, which a run makes from (seed, step).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR = torch.finfo(torch.float32).eps  # lower bound of a mixed power
CANVAS = 1.5  # length of the area that a resize crop is cut from, in lengths of the input
CROP = (0.6, 1.5)  # range of its height and width, in heights and lengths of the input


def mixup_shares(clips: int, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return each clip's own share, (clips,) from Beta(alpha, alpha), and its partner, (clips,)."""
    shares = torch.from_numpy(rng.beta(alpha, alpha, clips).astype(np.float32))
    return shares, torch.from_numpy(rng.permutation(clips))


def mix(x: Tensor, partner: Tensor, shares: Tensor) -> Tensor:
    """Return share · x + (1 - share) · partner.

    Args:
        x: (clips, …): waveforms, or targets.
        partner: The clips to mix with, of the same shape.
        shares: (clips,).
    """
    weight = shares.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    return weight * x + (1 - weight) * partner


def mix_log_mels(x: Tensor, partner: Tensor, shares: Tensor) -> Tensor:
    """Return log-mels mixed in power: ln(max(share · exp(x) + (1 - share) · exp(partner), eps)).

    Args:
        x: Log-mel, (clips, …), not standardized.
        partner: The log-mels to mix with, of the same shape.
        shares: (clips,).
    """
    return mix(x.exp(), partner.exp(), shares).clamp(min=FLOOR).log()


def mask_stripes(x: Tensor, frequency: int, time: int, rng: np.random.Generator) -> Tensor:
    """Return the batch with one stripe of mel bins and one of frames set to 0, the same in each clip.

    Source: SpecAugment (Park et al., 2019), as published: a width from U(0, maximum), then a start.

    Args:
        x: Standardized log-mel, (clips, 1, mels, frames).
        frequency: Maximum number of bins of the stripe.
        time: Maximum number of frames of the stripe.
        rng: The random generator.
    """
    x = x.clone()
    for axis, most in ((2, frequency), (3, time)):
        width = rng.random() * most
        start = int(rng.random() * (x.shape[axis] - width))
        if x.shape[axis] > width:
            x.narrow(axis, start, int(width)).zero_()
    return x


def resize_crop(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Return each spectrogram's random crop of a canvas with half as many frames again, resized to its size.

    Source: BYOL-A's random resize crop (Niizumi et al., 2021): the spectrogram lies in the middle of a canvas
    of zeros; a crop of U(0.6, 1.5) of each side, at most the canvas, is resized bicubically.

    Args:
        x: Standardized log-mel, (clips, 1, mels, frames).
        rng: The random generator.
    """
    mels, frames = x.shape[2:]
    wide = int(CANVAS * frames)
    left = (wide - frames) // 2
    canvas = F.pad(x, (left, wide - frames - left))
    crops = []
    for item in canvas:
        high = min(int(mels * rng.uniform(*CROP)), mels)
        long = min(int(frames * rng.uniform(*CROP)), wide)
        top, start = int(rng.integers(mels - high + 1)), int(rng.integers(wide - long + 1))
        crop = item[None, :, top : top + high, start : start + long]
        crops.append(F.interpolate(crop, size=(mels, frames), mode="bicubic", align_corners=True))
    return torch.cat(crops)


def dropped_counts(grid: tuple[int, int], ratio: float, rng: np.random.Generator) -> tuple[int, int]:
    """Return how many rows and columns of patches are marked, the same for a whole batch.

    NF = min(F - 1, floor((F·r + 1)·U(0, 1))), NT = floor(T·max(r + 0.5/T - NF/F, 0)).

    Args:
        grid: Rows F and columns T of patches.
        ratio: r, the share to drop.
        rng: The random generator.
    """
    rows, columns = grid
    marked_rows = min(rows - 1, math.floor((rows * ratio + 1) * rng.random()))
    marked_columns = math.floor(columns * max(ratio + 0.5 / columns - marked_rows / rows, 0.0))
    return marked_rows, min(marked_columns, columns - 1)


def kept_patches(
    clips: int, grid: tuple[int, int], ratio: float, rule: str, rng: np.random.Generator
) -> Tensor:
    """Return the indices of the patches that structured dropping keeps, (clips, kept), in rising order.

    ``paper`` keeps the patches outside the marked rows and columns (structured patchout, Koutini et al.,
    2022). ``as_published`` keeps the same number, but marked patches first, as the authors' code does: marked
    rows and columns, cut or filled up at random.

    Args:
        clips: Each has its own rows and columns.
        grid: Rows and columns of patches; tokens are row by row.
        ratio: Share to drop.
        rule: ``paper`` or ``as_published``.
        rng: The random generator.
    """
    rows, columns = grid
    marked_rows, marked_columns = dropped_counts(grid, ratio, rng)
    kept = (rows - marked_rows) * (columns - marked_columns)
    found = np.empty((clips, kept), np.int64)
    for clip in range(clips):
        marked = np.zeros(grid, bool)
        marked[rng.permutation(rows)[:marked_rows]] = True
        marked[:, rng.permutation(columns)[:marked_columns]] = True
        first = marked if rule == "as_published" else ~marked
        # Those of the kind that is kept first, in random order, then the others.
        order = np.argsort(rng.random(rows * columns) - first.ravel())
        found[clip] = np.sort(order[:kept])
    return torch.from_numpy(found)
