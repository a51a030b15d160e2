"""Cut a long spectrogram into windows of the model's input length, and group windows into forward passes.

Our rule loses no frame: windows step by whole patches, the last is padded to a whole patch. The published
rules are kept for comparison; where the input length is a multiple of the patch, M2D's is the same.
A pass holds windows of equal length, of any clips; memory does not grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import LogMelSpectrogram

# Tokens that fill the matrix units: more of them in one pass only cost memory.
TARGET_TOKENS = {"cpu": 3072, "cuda": 8192}
_STATISTICS_FRAMES = 1024  # frames read at once for the statistics of a batch


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one clip."""

    clip: int  # which clip of the batch
    start: int  # its first frame; negative where a shifted pass begins before the clip
    frames: int  # whole patches of frames; those outside the clip are zeros (the mean)
    column: int  # the index of its first column among the clip's
    columns: int  # how many of its columns count; the published MSM-MAE cuts some off at the end
    phase: int = 0  # which shifted pass it belongs to, for dense timestamps


@dataclass(frozen=True)
class WindowPlan:
    """How one spectrogram is cut."""

    pad: int  # frames of zeros (the mean) appended first
    stride: int  # frames from one window's start to the next; a window is its whole patches
    count: int  # windows; the last may be shorter
    patch: int  # frames of a patch
    drop: int = 0  # columns cut off at the end

    def windows(self, frames: int, *, clip: int = 0, shift: int = 0, phase: int = 0) -> list[Window]:
        """Return the windows of a spectrogram that begins at frame ``shift`` of the clip, ``frames`` long."""
        starts = [i * self.stride for i in range(self.count)]
        lengths = [min(self.stride, frames + self.pad - start) // self.patch for start in starts]
        kept = sum(lengths) - self.drop
        windows, column = [], 0
        for start, length in zip(starts, lengths, strict=True):
            if columns := min(length, kept - column):
                windows.append(Window(clip, start + shift, length * self.patch, column, columns, phase))
                column += columns
        return windows


def plan_windows(frames: int, *, window: int, patch: int, rule: str = "whole") -> WindowPlan:
    """Cut a log-mel of ``frames`` frames into windows of ``window`` frames.

    ``rule`` is ``whole``, or the published one of a code base: ``m2d`` or ``msm_mae``.
    """
    if rule == "whole":
        stride = window // patch * patch
        return WindowPlan(pad=-frames % patch, stride=stride, count=-(-frames // stride), patch=patch)
    if rule == "m2d":  # slices of the padded log-mel; what the padding moves past the last slice is lost
        pad = -(frames % window) % patch
        return WindowPlan(pad=pad, stride=window, count=-(-frames // window), patch=patch)
    pad = window - frames % window  # always: an exact multiple gets a whole window of padding
    drop = window // patch * pad // window
    return WindowPlan(pad=pad, stride=window, count=(frames + pad) // window, patch=patch, drop=drop)


def windows_per_pass(config: EncoderConfig, frames: int, device: torch.device) -> int:
    """Return how many windows of ``frames`` frames fill the device."""
    tokens = config.grid[0] * (frames // config.patch_size[1]) + config.class_token
    return max(1, TARGET_TOKENS.get(device.type, TARGET_TOKENS["cuda"]) // tokens)


def passes(windows: Sequence[Window], size: Callable[[int], int]) -> Iterator[list[Window]]:
    """Group windows into forward passes.

    Only windows of one length share a pass: ``size(frames)`` of them. The longest come first: within a clip
    all windows but the last are of one length, so that each clip's windows stay in order.
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
    """Return the standardized log-mel of windows of one length, (windows, mels, frames).

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
            count, total, squares = (
                count + x.numel(),
                total + float(x.sum()),
                squares + float(x.square().sum()),
            )
    mean = total / count
    variance = (squares - count * mean**2) / (
        count - 1
    )  # in double precision, of values from -16 to about 15
    return mean, max(variance, 1e-12) ** 0.5  # silence has no deviation
