"""Collectors take the encoder's columns pass by pass and keep only what will be returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hear_m2d.model.timestamps import interpolate_columns
from hear_m2d.model.windows import Window


class Collector(Protocol):
    """Processes the columns of each pass."""

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take the columns (windows, columns of a window, features) of one pass."""


class Columns:
    """Keeps every column: one tensor (columns, features) per clip, with gradients.

    ``arrange`` maps the columns of one window (n, features) to what is kept.
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


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


class MeanOverColumns:
    """Keeps the sum over each clip's columns."""

    def __init__(self, clips: int, features: int, device: torch.device) -> None:
        self._sums = torch.zeros(clips, features, dtype=_exact_dtype(device), device=device)
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

    Writes to ``targets``, (timestamps, features) a clip. Timestamps are ``step`` frames apart, columns
    ``patch`` frames.
    """

    def __init__(
        self, targets: Sequence[Tensor], *, step: int, patch: int, arrange: Callable[[Tensor], Tensor]
    ) -> None:
        self._targets = targets
        self._arrange = arrange
        self._step = step
        self._patch = patch
        self._written = [0] * len(targets)
        self._last: list[tuple[Tensor, Tensor] | None] = [None] * len(targets)  # center, column

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass; the windows of a clip come in order."""
        # Indices are made where the columns are: nothing is copied to the device.
        dtype = _exact_dtype(columns.device)
        for window, part in zip(windows, columns, strict=True):
            first = window.start + (self._patch - 1) / 2
            centers = torch.arange(window.columns, dtype=dtype, device=part.device) * self._patch + first
            last = first + (window.columns - 1) * self._patch
            self._add(window.clip, centers, self._arrange(part[: window.columns]), last)

    def _add(self, clip: int, centers: Tensor, columns: Tensor, last_center: float) -> None:
        last = self._last[clip]
        if last is not None:
            centers, columns = torch.cat([last[0], centers]), torch.cat([last[1], columns])
        self._last[clip] = centers[-1:], columns[-1:].clone()
        # Up to the last column's center; later timestamps wait for the next window, or for `finish`.
        reached = int((last_center - (self._step - 1) / 2) // self._step) + 1
        self._write(clip, centers, columns, min(reached, len(self._targets[clip])))

    def _write(self, clip: int, centers: Tensor, columns: Tensor, until: int) -> None:
        first = self._written[clip]
        if until > first:
            index = torch.arange(first, until, dtype=centers.dtype, device=centers.device)
            frames = index * self._step + (self._step - 1) / 2
            self._targets[clip][first:until] = interpolate_columns(columns, centers, frames)
            self._written[clip] = until

    def finish(self) -> None:
        """Write the timestamps after the last column's center: they get the last column."""
        for clip, last in enumerate(self._last):
            if last is not None:
                self._write(clip, *last, len(self._targets[clip]))


class PhasedColumns:
    """Writes the columns of each shifted pass to every ``phases``-th timestamp (``timestamps="dense"``)."""

    def __init__(
        self, targets: Sequence[Tensor], *, phases: int, arrange: Callable[[Tensor], Tensor]
    ) -> None:
        self._targets = targets
        self._phases = phases
        self._arrange = arrange

    def add(self, windows: Sequence[Window], columns: Tensor) -> None:
        """Take one pass."""
        for window, part in zip(windows, columns, strict=True):
            target = self._targets[window.clip][window.phase :: self._phases][window.column :]
            count = min(len(target), window.columns)
            target[:count] = self._arrange(part[:count])
