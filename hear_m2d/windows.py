"""Where a long spectrogram is cut into windows of the model's input length.

Our rule loses no frame: windows step by whole patches, the last is padded to a whole patch. The published
rules are kept for comparison; where the input length is a multiple of the patch, M2D's is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowPlan:
    """How one spectrogram is cut.

    Attributes:
        pad: Frames of zeros (the mean) appended first.
        stride: Frames from one window's start to the next; a window is its whole patches.
        count: Windows; the last may be shorter.
        patch: Frames of a patch.
        drop: Columns cut off at the end.
    """

    pad: int
    stride: int
    count: int
    patch: int
    drop: int = 0

    @property
    def regular(self) -> bool:
        """Whether columns follow one another without a gap between windows."""
        return self.stride % self.patch == 0

    def centres(self, columns: int) -> Tensor:
        """Return the centre of each column, in frames, (columns,), float64."""
        index = torch.arange(columns, dtype=torch.int64)
        in_window = self.stride // self.patch
        start = index // in_window * self.stride + index % in_window * self.patch
        return start.double() + (self.patch - 1) / 2


def plan_windows(frames: int, *, window: int, patch: int, rule: str = "whole") -> WindowPlan:
    """Cut ``frames`` into windows.

    Args:
        frames: Length of the log-mel.
        window: Frames of the model's input.
        patch: Frames of a patch.
        rule: ``whole``, or the published one of a code base: ``m2d`` or ``msm_mae``.
    """
    if rule == "whole":
        stride = window // patch * patch
        return WindowPlan(pad=-frames % patch, stride=stride, count=-(-frames // stride), patch=patch)
    if rule == "m2d":  # slices of the padded log-mel; what the padding pushes past the last slice is lost
        return WindowPlan(
            pad=-(frames % window) % patch, stride=window, count=-(-frames // window), patch=patch
        )
    pad = window - frames % window  # always: an exact multiple gets a whole window of padding
    return WindowPlan(
        pad=pad,
        stride=window,
        count=(frames + pad) // window,
        patch=patch,
        drop=window // patch * pad // window,
    )
