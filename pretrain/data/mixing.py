"""Noise mixed into what the student hears, in the power of the log-mel; the clean clip stays beside it.

Source: M2D-X (see ``m2d_x.py``): each side minus its own set's mean, mixed, over the clean set's deviation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hear_m2d.pretrain.data.crops import Crops, Items, Key, LogMelData, crop_into, draw
from hear_m2d.utils.errors import InputError

FLOOR = torch.finfo(torch.float32).eps  # of the mixed power


def mix_log_mel(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Return ln(max(ratio · exp(noise) + (1 - ratio) · exp(clean), eps)).

    Args:
        clean: Log-mel minus the mean of its set, any shape.
        noise: Log-mel minus the mean of the noise's set, likewise.
        ratio: Share of the noise: 0 is the clean clip, 1 the noise alone.
    """
    mixed = clean.exp().mul_(1 - ratio).add_(noise.exp(), alpha=ratio)
    return mixed.clamp_(min=FLOOR).log_()


def noise_place(lengths: NDArray[np.int64], frames: int, *, seed: int, key: Key) -> tuple[int, int]:
    """Return which noise clip goes into an item, and its first frame: functions of (seed, epoch, clip).

    Args:
        lengths: Frames of each noise clip.
        frames: Of a crop; a shorter noise clip is repeated, and begins anywhere.
        seed: Of the run.
        key: Epoch and clip of the item.
    """
    # Words of their own: a crop's start is drawn from (seed, epoch, clip).
    clip = draw(len(lengths), seed, *key, 1)
    length = int(lengths[clip])
    return clip, draw(length - frames + 1 if length >= frames else length, seed, *key, 2)


class MixedCrops(Dataset[dict[str, Tensor]]):
    """Crops with noise: ``x`` is the mixture, ``clean`` the clip alone; whatever else an item has stays.

    A clip shorter than the crop was padded with the mean; noise sounds there too.

    Args:
        crops: The clean crops.
        noise: Prepared noise, of the same front end.
        ratio: Share of the noise, 0 < ratio < 1.

    Raises:
        ValueError: The noise was prepared with another front end.
    """

    def __init__(self, crops: Crops, noise: LogMelData, *, ratio: float) -> None:
        if noise.frontend != crops.data.frontend:
            raise InputError(
                f"the noise {noise.folder} was prepared at {noise.frontend.sample_rate} Hz, the data "
                f"{crops.data.folder} at {crops.data.frontend.sample_rate} Hz: prepare one of them anew"
            )
        self.crops, self.noise, self.ratio = crops, noise, ratio

    def __len__(self) -> int:
        """Return the number of clips, which is that of items in an epoch."""
        return len(self.crops)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the item of (epoch, clip)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> Items:
        """Return several items, side by side in memory."""
        whole = self.crops.__getitems__(keys).whole
        clean, std = whole["x"], self.crops.data.std
        mixed = mix_log_mel(clean * std, self._noise(keys), self.ratio).div_(std)
        return Items({**whole, "x": mixed, "clean": clean})

    def _noise(self, keys: list[Key]) -> Tensor:
        """Return the noise of items minus its set's mean, (items, 1, mels, frames)."""
        frames, mels = self.crops.frames, self.noise.frontend.n_mels
        found = torch.empty(len(keys), 1, mels, frames)
        for out, key in zip(found.numpy(), keys, strict=True):
            clip, start = noise_place(self.noise.lengths, frames, seed=self.crops.seed, key=key)
            logmel = self.noise.logmel(clip)  # (mels, frames of the clip)
            if logmel.shape[1] < frames:  # repeated
                logmel = logmel[:, (start + np.arange(frames)) % logmel.shape[1]]
                start = 0
            crop_into(out[0], logmel, start, self.noise.mean, 1.0)
        return found
