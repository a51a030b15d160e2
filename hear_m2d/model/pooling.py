"""Windows in, embeddings out, a pass at a time: memory does not grow with the length of the audio.

`passes` groups windows of equal length, whatever clip they come from. What comes out of the encoder goes to
a collector, which keeps only what will be returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.timestamps import interpolate_columns, timestamp_frames
from hear_m2d.model.windows import Window

_STATISTICS_FRAMES = 1024  # frames read in one go where a batch's own statistics are wanted


class Collector(Protocol):
    """What becomes of the columns of each pass."""

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take the columns (windows, columns of a window, features) of one pass."""


def passes(windows: Sequence[Window], size: Callable[[int], int]) -> Iterator[list[Window]]:
    """Group windows into forward passes.

    Only windows of one length share a pass. The longest come first: within a clip all windows but the last
    are of one length, so that each clip's windows stay in order.

    Args:
        windows: Of all clips.
        size: Windows in a pass, for windows of so many frames.
    """
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(window.frames, []).append(window)
    for frames in sorted(by_length, reverse=True):
        group, step = by_length[frames], size(frames)
        yield from (group[i : i + step] for i in range(0, len(group), step))


def cut_log_mel(
    frontend: LogMelSpectrogram,
    clips: Sequence[Tensor],
    windows: Sequence[Window],
    *,
    statistics: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """Return the standardised log-mel of windows of one length, (windows, mels, frames).

    Each is computed from the samples under it alone. Frames outside the clip are zeros, the mean.
    """
    frames = windows[0].frames
    segments = torch.stack([frontend.segment(clips[w.clip], w.start, frames) for w in windows])
    mean, std = statistics
    x = (frontend.of_segments(segments.to(device)) - mean) / std
    ends = [frontend.config.frames(len(clips[w.clip])) - w.start for w in windows]
    if all(w.start >= 0 for w in windows) and min(ends) >= frames:
        return x
    first = torch.tensor([-w.start for w in windows], device=device)[:, None, None]
    end = torch.tensor(ends, device=device)[:, None, None]
    index = torch.arange(frames, device=device)
    return x.masked_fill((index < first) | (index >= end), 0.0)


def batch_statistics(
    frontend: LogMelSpectrogram, clips: Sequence[Tensor], device: torch.device
) -> tuple[float, float]:
    """Return mean and unbiased standard deviation over every bin of every clip."""
    count, total, squares = 0, 0.0, 0.0
    for clip in clips:
        frames = frontend.config.frames(len(clip))
        for first in range(0, frames, _STATISTICS_FRAMES):
            segment = frontend.segment(clip, first, min(_STATISTICS_FRAMES, frames - first))
            x = frontend.of_segments(segment[None].to(device)).cpu().double()
            mean, n = float(x.mean()), x.numel()
            # Chan's rule: sums of squares about each part's own mean lose no digits.
            squares += float((x - mean).square().sum())
            squares += (mean - total / count) ** 2 * count * n / (count + n) if count else 0.0
            total += mean * n
            count += n
    return total / count, max((squares / (count - 1)) ** 0.5, 1e-6)  # silence has no deviation


class Columns:
    """Keeps every column: one tensor (columns, features) a clip; gradients pass.

    Args:
        clips: How many.
        arrange: Columns of one window (n, features) → what is kept.
    """

    def __init__(self, clips: int, arrange: Callable[[Tensor], Tensor] = lambda columns: columns) -> None:
        self._parts: list[list[Tensor]] = [[] for _ in range(clips)]
        self._arrange = arrange

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass."""
        for window, part in zip(windows, columns, strict=True):
            self._parts[window.clip].append(self._arrange(part[: window.columns]))

    def result(self) -> list[Tensor]:
        """Return each clip's columns."""
        return [torch.cat(parts) for parts in self._parts]


class MeanOverColumns:
    """Keeps the sum over each clip's columns."""

    def __init__(self, clips: int, features: int, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self._sums = torch.zeros(clips, features, dtype=exact, device=device)
        self._counts = torch.zeros(clips, 1, dtype=torch.int64)

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass."""
        clips = torch.tensor([w.clip for w in windows])
        kept = torch.tensor([w.columns for w in windows])
        if int(kept.min()) < columns.shape[1]:
            index = torch.arange(columns.shape[1])
            columns = columns * (index < kept[:, None]).to(columns)[:, :, None]
        sums = columns.sum(1, dtype=self._sums.dtype)
        self._sums.index_add_(0, clips.to(sums.device), sums)
        self._counts.index_add_(0, clips, kept[:, None])

    def result(self) -> Tensor:
        """Return the means, (clips, features), float32."""
        return (self._sums / self._counts.to(self._sums.device)).float()


class InterpolatedColumns:
    """Reads each clip's columns linearly at its timestamps, as soon as the columns on both sides are there.

    Args:
        targets: Where to write: (timestamps, features) a clip.
        step: Frames between timestamps.
        patch: Frames of a column.
        arrange: Columns (n, features) → what is written.
    """

    def __init__(
        self, targets: Sequence[Tensor], *, step: int, patch: int, arrange: Callable[[Tensor], Tensor]
    ) -> None:
        self._targets = targets
        self._arrange = arrange
        self._step = step
        self._patch = patch
        self._written = [0] * len(targets)
        self._last: list[tuple[Tensor, Tensor] | None] = [None] * len(targets)  # centre, column

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass; a clip's windows come in order."""
        for window, part in zip(windows, columns, strict=True):
            centres = window.start + torch.arange(window.columns, dtype=torch.float64) * self._patch
            self._add(window.clip, centres + (self._patch - 1) / 2, self._arrange(part[: window.columns]))

    def _add(self, clip: int, centres: Tensor, columns: Tensor) -> None:
        last = self._last[clip]
        if last is not None:
            centres, columns = torch.cat([last[0], centres]), torch.cat([last[1], columns])
        self._last[clip] = centres[-1:], columns[-1:].clone()
        # Up to the last column's centre; what lies after it waits for the next window, or for `result`.
        reached = int((float(centres[-1]) - (self._step - 1) / 2) // self._step) + 1
        self._write(clip, centres, columns, min(reached, len(self._targets[clip])))

    def _write(self, clip: int, centres: Tensor, columns: Tensor, until: int) -> None:
        first = self._written[clip]
        if until > first:
            frames = timestamp_frames(first, until, step=self._step)
            self._targets[clip][first:until] = interpolate_columns(columns, centres, frames)
            self._written[clip] = until

    def finish(self) -> None:
        """After the last column's centre, it holds."""
        for clip, last in enumerate(self._last):
            if last is not None:
                self._write(clip, *last, len(self._targets[clip]))


class PhasedColumns:
    """Writes the columns of each shifted pass to every ``phases``-th timestamp (``timestamps="dense"``).

    Args:
        targets: Where to write: (timestamps, features) a clip.
        phases: How many passes.
        arrange: Columns (n, features) → what is written.
    """

    def __init__(
        self, targets: Sequence[Tensor], *, phases: int, arrange: Callable[[Tensor], Tensor]
    ) -> None:
        self._targets = targets
        self._phases = phases
        self._arrange = arrange

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass."""
        for window, part in zip(windows, columns, strict=True):
            wanted = self._targets[window.clip][window.phase :: self._phases][window.column :]
            count = min(len(wanted), window.columns)
            wanted[:count] = self._arrange(part[:count])


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Have torch compile the blocks on their first call, for any number and length of windows.

    Block by block: the blocks are alike, so that what is compiled for the first serves all.
    """
    for block in blocks:
        block.compile(dynamic=True)
