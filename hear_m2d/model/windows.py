"""Where a long spectrogram is cut into windows of the model's input length.

Our rule loses no frame: windows step by whole patches, the last is padded to a whole patch. The published
rules are kept for comparison; where the input length is a multiple of the patch, M2D's is the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one clip.

    Attributes:
        clip: Which clip of the batch.
        start: Its first frame; negative where a shifted pass begins before the clip.
        frames: Whole patches of frames; those outside the clip are zeros (the mean).
        column: The index of its first column among the clip's.
        columns: How many of its columns count; the published MSM-MAE cuts some off at the end.
        phase: Which shifted pass it belongs to, for dense timestamps.
    """

    clip: int
    start: int
    frames: int
    column: int
    columns: int
    phase: int = 0


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

    def windows(self, frames: int, *, clip: int = 0, shift: int = 0, phase: int = 0) -> list[Window]:
        """Return the windows of a spectrogram of ``frames`` frames, in order.

        Args:
            frames: The spectrogram's length, after the shift.
            clip: Which clip of the batch.
            shift: The frame of the clip at which the spectrogram begins.
            phase: Which shifted pass this is.
        """
        starts = [i * self.stride for i in range(self.count)]
        lengths = [min(self.stride, frames + self.pad - start) // self.patch for start in starts]
        kept = sum(lengths) - self.drop
        found, column = [], 0
        for start, length in zip(starts, lengths, strict=True):
            if columns := min(length, kept - column):
                found.append(Window(clip, start + shift, length * self.patch, column, columns, phase))
                column += columns
        return found


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
