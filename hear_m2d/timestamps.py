"""When each embedding happens: the closed form of the timestamps, and columns read at those times.

Frame k of the log-mel is centred on k hops, a column is p frames; timestamps are q frames apart, q the
largest divisor of p with at most 50 ms. Timestamp i is the centre of frames i·q … i·q + q - 1.
Source: the HEAR API (timestamps are the centres of the embeddings, at most 50 ms apart).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hear_m2d.frontend import FrontendConfig

LONGEST_STEP_MS = 50.0


def frame_step(patch_frames: int, hop_ms: float) -> int:
    """Return q: frames between timestamps, the largest divisor of the patch's width within 50 ms."""
    divisors = [q for q in range(1, patch_frames + 1) if patch_frames % q == 0]
    return max((q for q in divisors if q * hop_ms <= LONGEST_STEP_MS), default=1)


def timestamp_count(samples: int, *, step: int, hop_length: int) -> int:
    """Return how many timestamps are not past the end of the audio; at least 1."""
    # (i·q + (q - 1) / 2) · hop ≤ samples, in whole numbers.
    return max(1, (2 * samples - (step - 1) * hop_length) // (2 * step * hop_length) + 1)


def timestamps_ms(count: int, *, step: int, frontend: FrontendConfig) -> Tensor:
    """Return the first ``count`` timestamps in milliseconds, (count,), float64, each from its index."""
    index = torch.arange(count, dtype=torch.float64)
    return (index * step + (step - 1) / 2) * (1000.0 * frontend.hop_length) / frontend.sample_rate


def interpolate_columns(columns: Tensor, centres: Tensor, *, count: int, step: int) -> Tensor:
    """Read columns linearly at the timestamps.

    Before the first and after the last column's centre, the end column holds.

    Args:
        columns: (batch, n, features).
        centres: Centre of each column, in frames, ascending, (n,), float64.
        count: How many timestamps.
        step: Frames between timestamps.

    Returns:
        (batch, count, features).
    """
    frame = torch.arange(count, dtype=torch.float64) * step + (step - 1) / 2
    frame = frame.clamp(centres[0], centres[-1])
    right = torch.searchsorted(centres, frame)  # the first centre at or after the timestamp
    left = (right - 1).clamp(min=0)
    span = (centres[right] - centres[left]).clamp(min=1)
    weight = ((frame - centres[left]) / span).to(columns)[None, :, None]
    left, right = left.to(columns.device), right.to(columns.device)
    return torch.lerp(columns[:, left], columns[:, right], weight)


def dense_offset(phase: int, *, step: int, patch_frames: int) -> int:
    """Return the frame at which the first column of a dense pass starts; negative: frames of padding."""
    return phase * step - (patch_frames - step + 1) // 2
