"""The times of the embeddings: a closed form of the timestamps, and columns interpolated at those times.

Frame k of the log-mel is centered on k hops, a column is p frames; timestamps are q frames apart, q the
largest divisor of p with at most 50 ms. Timestamp i is the center of frames i·q … i·q + q - 1.
Source: the HEAR API (timestamps are the centers of the embeddings, at most 50 ms apart).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hear_m2d.model.frontend import FrontendConfig

LONGEST_STEP_MS = 50.0


def frame_step(patch_frames: int, hop_ms: float) -> int:
    """Return q: frames between timestamps, the largest divisor of the patch's width within 50 ms."""
    divisors = [q for q in range(1, patch_frames + 1) if patch_frames % q == 0]
    return max((q for q in divisors if q * hop_ms <= LONGEST_STEP_MS), default=1)


def timestamp_count(samples: int, *, step: int, hop_length: int) -> int:
    """Return how many timestamps are not past the end of the audio; at least 1."""
    # (i·q + (q - 1) / 2) · hop ≤ samples, in integers.
    return max(1, (2 * samples - (step - 1) * hop_length) // (2 * step * hop_length) + 1)


def timestamps_ms(count: int, *, step: int, frontend: FrontendConfig) -> Tensor:
    """Return the first ``count`` timestamps in milliseconds, (count,), float64, each from its index."""
    frames = timestamp_frames(0, count, step=step)
    return frames * (1000.0 * frontend.hop_length) / frontend.sample_rate


def timestamp_frames(first: int, until: int, *, step: int) -> Tensor:
    """Return the timestamps ``first`` to ``until`` (excluded) in frames, (until - first,), float64."""
    return torch.arange(first, until, dtype=torch.float64) * step + (step - 1) / 2


def interpolate_columns(columns: Tensor, centers: Tensor, frames: Tensor) -> Tensor:
    """Read columns (n, features) linearly at the times ``frames`` (count,): (count, features).

    ``centers`` (n,) are the columns' own times, ascending; both are float64, in frames. Before the first and
    after the last column's center, the end column holds.
    """
    frames = frames.clamp(centers[0], centers[-1])
    right = torch.searchsorted(centers, frames)  # the first center at or after the timestamp
    left = (right - 1).clamp(min=0)
    span = (centers[right] - centers[left]).clamp(min=1)
    weight = ((frames - centers[left]) / span).to(columns)[:, None]
    left, right = left.to(columns.device), right.to(columns.device)
    return torch.lerp(columns[left], columns[right], weight)


def dense_offset(phase: int, *, step: int, patch_frames: int) -> int:
    """Return the frame at which the first column of a dense pass starts; negative: frames of padding."""
    return phase * step - (patch_frames - step + 1) // 2
