"""Prepared clips → standardized random crops, perhaps with noise: functions of (seed, epoch, clip).

Source of the mixing: M2D-X (see ``m2d_x.py``): each side minus its own set's mean, mixed, over the clean
set's deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from hear_m2d.pretrain.data.prepared import LogMelData, require_labels
from hear_m2d.pretrain.data.sampling import Key, draw
from hear_m2d.utils.errors import InputError

Batch = dict[str, Tensor]
MIN_POWER = torch.finfo(torch.float32).eps  # of a mixture, as published


class Items(Protocol):
    """What a run trains on: :class:`Crops`, or those with noise."""

    def __getitem__(self, key: Key) -> Batch:
        """Return the item of (epoch, clip)."""
        ...

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return several items, already stacked, so that the loader needs no ``collate_fn``."""
        ...

    def find_non_finite(self, steps: Iterable[Sequence[Key]]) -> str:
        """Return which clip of these steps has values that are not finite; empty for none."""
        ...


class Crops:
    """Random crops: the item of (epoch, clip) is a function of (seed, epoch, clip) only.

    An item is a dict of tensors: ``x``, the standardized crop, (1, mels, frames); with ``labels``, also
    ``target``, the clip's labels, (classes,).

    Args:
        data: The opened shards.
        frames: Length of a crop; shorter clips are padded with the mean.
        seed: Of the run.
        labels: Give each item its labels.

    Raises:
        InputError: A crop has no frames, or the data has no labels and they are wanted.
    """

    def __init__(self, data: LogMelData, frames: int = 208, seed: int = 0, *, labels: bool = False) -> None:
        if frames < 1:
            raise InputError(f"a crop must have at least 1 frame, got {frames}")
        if labels:
            require_labels(data.labels, data.folder)
        self.data, self.frames, self.seed, self.labels = data, frames, seed, labels

    def __len__(self) -> int:
        """Return the number of clips, which is the number of items in an epoch."""
        return len(self.data)

    def start(self, key: Key) -> int:
        """Return the first frame of a crop: uniform over all starts that stay inside the clip."""
        epoch, clip = key
        starts = max(self.data.frames(clip) - self.frames + 1, 1)
        return draw(starts, self.seed, epoch, clip)

    def __getitem__(self, key: Key) -> Batch:
        """Return the item of (epoch, clip)."""
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return several items, stacked."""
        x = _shared((len(keys), 1, self.data.frontend.n_mels, self.frames))
        for out, key in zip(x.numpy(), keys, strict=True):
            crop_into(out[0], self.data.logmel(key[1]), self.start(key), self.data.mean, self.data.std)
        if not self.labels:
            return {"x": x}
        return {"x": x, "target": torch.stack([self.data.multi_hot(clip) for _, clip in keys])}

    def find_non_finite(self, steps: Iterable[Sequence[Key]]) -> str:
        """Return which clip of these steps has values that are not finite; empty for none."""
        return self.data.find_non_finite(clip for keys in steps for _, clip in keys)


class MixedCrops:
    """Crops with noise: ``x`` is the mixture, ``clean`` the clip alone; other tensors of an item stay.

    A clip shorter than the crop was padded with the mean; the padding gets noise, too.

    Args:
        crops: The clean crops.
        noise: Prepared noise, of the same front end.
        ratio: Share of the noise, 0 < ratio < 1.

    Raises:
        InputError: The noise was prepared with another front end.
    """

    def __init__(self, crops: Crops, noise: LogMelData, *, ratio: float) -> None:
        if noise.frontend != crops.data.frontend:
            raise InputError(
                f"the noise {noise.folder} was prepared at {noise.frontend.sample_rate} Hz, the data "
                f"{crops.data.folder} at {crops.data.frontend.sample_rate} Hz: prepare one of them again"
            )
        self.crops, self.noise, self.ratio = crops, noise, ratio

    def __len__(self) -> int:
        """Return the number of clips, which is the number of items in an epoch."""
        return len(self.crops)

    def __getitem__(self, key: Key) -> Batch:
        """Return the item of (epoch, clip)."""
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return several items, stacked."""
        batch = self.crops.__getitems__(keys)
        clean, std = batch["x"], self.crops.data.std
        mixed = mix_log_mel(clean * std, self._noise(keys), self.ratio).div_(std)
        return {**batch, "x": mixed, "clean": clean}

    def find_non_finite(self, steps: Iterable[Sequence[Key]]) -> str:
        """Return which clip of these steps, or which noise, has values that are not finite."""
        steps = list(steps)
        keys = (key for keys in steps for key in keys)
        noise = (
            noise_place(self.noise.lengths, self.crops.frames, seed=self.crops.seed, key=key)[0]
            for key in keys
        )
        return self.crops.find_non_finite(steps) or self.noise.find_non_finite(noise)

    def _noise(self, keys: list[Key]) -> Tensor:
        """Return the noise of items minus its set's mean, (items, 1, mels, frames)."""
        frames, mels = self.crops.frames, self.noise.frontend.n_mels
        noise = torch.empty(len(keys), 1, mels, frames)
        for out, key in zip(noise.numpy(), keys, strict=True):
            clip, start = noise_place(self.noise.lengths, frames, seed=self.crops.seed, key=key)
            logmel = self.noise.logmel(clip)  # (mels, frames of the clip)
            if logmel.shape[1] < frames:  # repeated
                logmel = logmel[:, (start + np.arange(frames)) % logmel.shape[1]]
                start = 0
            crop_into(out[0], logmel, start, self.noise.mean, 1.0)
        return noise


def mix_log_mel(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Return ln(max(ratio · exp(noise) + (1 - ratio) · exp(clean), eps)).

    Args:
        clean: Log-mel minus the mean of its set, any shape.
        noise: Log-mel minus the mean of the noise's set, of the same shape.
        ratio: Share of the noise: 0 is the clean clip, 1 the noise alone.
    """
    mixed = clean.exp().mul_(1 - ratio).add_(noise.exp(), alpha=ratio)
    return mixed.clamp_(min=MIN_POWER).log_()


def noise_place(lengths: NDArray[np.int64], frames: int, *, seed: int, key: Key) -> tuple[int, int]:
    """Return an item's noise clip and its first frame: functions of (seed, epoch, clip).

    Args:
        lengths: Frames of each noise clip.
        frames: Of a crop; a shorter noise clip is repeated, and begins anywhere.
        seed: Of the run.
        key: Epoch and clip of the item.
    """
    # One word more than for a crop's start, so that the two draws are independent.
    clip = draw(len(lengths), seed, *key, 1)
    length = int(lengths[clip])
    return clip, draw(length - frames + 1 if length >= frames else length, seed, *key, 2)


def crop_into(
    out: NDArray[np.float32], logmel: NDArray[np.floating[Any]], start: int, mean: float, std: float
) -> None:
    """Write a standardized crop; past the clip's end it is 0, which is the mean.

    Args:
        out: The crop, (mels, frames).
        logmel: The clip, (mels, frames of the clip).
        start: First frame.
        mean: Of the set.
        std: Of the set.
    """
    part = logmel[:, start : start + out.shape[1]]
    # Copied frame by frame, as on disk. torch converts float16 to float32 twice as fast as numpy, and numpy
    # transposes twice as fast as torch.
    copied = torch.from_numpy(np.array(part.T)).float().sub_(mean).mul_(1.0 / std)
    out[:, : part.shape[1]] = copied.numpy().T
    out[:, part.shape[1] :] = 0


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Return a new tensor; in a loader process it lies in shared memory, so that nothing is copied later."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(  # type: ignore[no-untyped-call]
        4 * math.prod(shape), device="cpu"
    )
    return torch.empty(0).set_(storage).view(shape)
