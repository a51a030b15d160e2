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
from hear_m2d.utils.device import free_memory

# Tokens that fill the matrix units: more of them in one pass only cost memory.
TARGET_TOKENS = {"cpu": 3072, "cuda": 8192}
_MEMORY_SHARE = 0.25  # of the free memory that one pass may take
_STATISTICS_FRAMES = 1024  # frames read at once for the statistics of a batch


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
    if (
        rule == "m2d"
    ):  # slices of the padded log-mel; frames that the padding moves past the last slice are lost
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


def windows_per_pass(
    config: EncoderConfig, frames: int, *, layers: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Return how many windows to encode at once: target to fill the device, within its free memory.

    Args:
        config: The encoder.
        frames: Frames of a window.
        layers: How many layers' outputs are kept.
        dtype: Of the encoder.
        device: Where it is.
    """
    tokens = config.grid[0] * (frames // config.patch_size[1]) + config.class_token
    target = max(1, TARGET_TOKENS.get(device.type, TARGET_TOKENS["cuda"]) // tokens)
    free = free_memory(device)
    if free is None:
        return target
    # A block's activations: its input, the norm, q, k, v, the MLP's hidden features before and after GELU;
    # attention scores, where no fused kernel avoids them; then the outputs in float32.
    block = tokens * config.width * (6 + 2 * config.mlp_ratio) + config.heads * tokens * tokens
    outputs = tokens * config.width * (config.depth if layers > 1 else 2) * 4
    return max(1, min(target, int(_MEMORY_SHARE * free / (block * dtype.itemsize + outputs))))


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
            mean, n = float(x.mean()), x.numel()
            # Chan's rule: sums of squares about the mean of each part lose no digits.
            squares += float((x - mean).square().sum())
            squares += (mean - total / count) ** 2 * count * n / (count + n) if count else 0.0
            total += mean * n
            count += n
    return total / count, max((squares / (count - 1)) ** 0.5, 1e-6)  # silence has no deviation
