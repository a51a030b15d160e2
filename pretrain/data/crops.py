"""Prepared clips → standardized random crops, perhaps with noise: functions of (seed, epoch, clip).

Source of the mixing: M2D-X (see ``m2d_x.py``): each side minus its own set's mean, mixed, over the clean
set's deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from hear_m2d.pretrain.data.prepared import LogMelData, require_labels
from hear_m2d.pretrain.data.sampling import Key, draw
from hear_m2d.utils.errors import InputError

Batch = dict[str, Tensor]
MIN_POWER = torch.finfo(torch.float32).eps  # lower bound of a mixture's power, as published


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

    def start(self, key: Key) -> int:
        """Return the first frame of a crop: uniform over all starts that stay inside the clip."""
        epoch, clip = key
        starts = max(self.data.frames(clip) - self.frames + 1, 1)
        return draw(starts, self.seed, epoch, clip)

    def __getitem__(self, key: Key) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> Batch:
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

    A clip shorter than the crop was padded with the mean; the padding gets noise, too. ``ratio`` is the share
    of the noise, 0 < ratio < 1.

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

    def __getitem__(self, key: Key) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> Batch:
        batch = self.crops.__getitems__(keys)
        clean, std = batch["x"], self.crops.data.std
        noise = torch.empty_like(clean)
        for out, key in zip(noise.numpy(), keys, strict=True):
            clip, start = self._noise_crop(key)
            logmel = self.noise.logmel(clip)  # (mels, frames of the clip)
            if logmel.shape[1] < self.crops.frames:  # repeated
                logmel = logmel[:, (start + np.arange(self.crops.frames)) % logmel.shape[1]]
                start = 0
            crop_into(out[0], logmel, start, self.noise.mean, 1.0)
        mixed = mix_log_mel(clean * std, noise, self.ratio).div_(std)
        return {**batch, "x": mixed, "clean": clean}

    def _noise_crop(self, key: Key) -> tuple[int, int]:
        return noise_crop(self.noise.lengths, self.crops.frames, seed=self.crops.seed, key=key)

    def find_non_finite(self, steps: Iterable[Sequence[Key]]) -> str:
        """Return which clip of these steps, or which noise, has values that are not finite."""
        steps = list(steps)
        noise = (self._noise_crop(key)[0] for keys in steps for key in keys)
        return self.crops.find_non_finite(steps) or self.noise.find_non_finite(noise)


Items = Crops | MixedCrops  # what a run trains on, by (epoch, clip)


def mix_log_mel(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Return ln(max(ratio · exp(noise) + (1 - ratio) · exp(clean), eps)).

    Both are log-mels minus the mean of their own set, of one shape; ratio 1 is the noise alone.
    """
    mixed = clean.exp().mul_(1 - ratio).add_(noise.exp(), alpha=ratio)
    return mixed.clamp_(min=MIN_POWER).log_()


def noise_crop(lengths: NDArray[np.int64], frames: int, *, seed: int, key: Key) -> tuple[int, int]:
    """Return an item's noise clip and its first frame: functions of (seed, epoch, clip).

    A noise clip that is shorter than the crop's ``frames`` is repeated, and begins anywhere.
    """
    # One word more than for a crop's start, so that the two draws are independent.
    clip = draw(len(lengths), seed, *key, 1)
    length = int(lengths[clip])
    return clip, draw(length - frames + 1 if length >= frames else length, seed, *key, 2)


def crop_into(
    out: NDArray[np.float32], logmel: NDArray[np.floating[Any]], start: int, mean: float, std: float
) -> None:
    """Write a standardized crop of a clip (mels, frames) into ``out`` (mels, frames of the crop).

    Past the clip's end it is 0, which is the mean.
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
