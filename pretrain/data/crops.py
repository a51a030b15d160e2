"""Prepared shards → standardised random crops, each a pure function of (seed, epoch, clip).

The shards stay on disk, memory-mapped. Which clips make up step n, and where each is cropped, follows from
the numbers alone: a run that resumes at step n, with any number of loader processes, sees what it would have.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

# Whoever trains needs both halves, and finds them here.
from hear_m2d.pretrain.data.prepared import LogMelData as LogMelData
from hear_m2d.pretrain.data.prepared import Prepared, require_labels
from hear_m2d.pretrain.data.prepared import open_data as open_data
from hear_m2d.pretrain.data.prepared import require_frontend as require_frontend
from hear_m2d.utils.errors import InputError

Key = tuple[int, int]  # (epoch, clip)


def crop(
    logmel: NDArray[np.floating[Any]], start: int, frames: int, mean: float, std: float
) -> NDArray[np.float32]:
    """Return a standardised crop; past the clip's end stands the mean, which is 0.

    Args:
        logmel: The clip, (mels, frames of the clip).
        start: First frame.
        frames: Frames wanted.
        mean: Of the set.
        std: Of the set.

    Returns:
        (mels, frames).
    """
    out = np.empty((logmel.shape[0], frames), np.float32)
    crop_into(out, logmel, start, mean, std)
    return out


def crop_into(
    out: NDArray[np.float32], logmel: NDArray[np.floating[Any]], start: int, mean: float, std: float
) -> None:
    """Do what :func:`crop` does, into an array (mels, frames)."""
    part = logmel[:, start : start + out.shape[1]]
    # Copied frame after frame, as it lies on disk; torch turns float16 into float32 twice as fast as numpy,
    # and numpy turns the axes twice as fast as torch.
    copied = torch.from_numpy(np.array(part.T)).float().sub_(mean).mul_(1.0 / std)
    out[:, : part.shape[1]] = copied.numpy().T
    out[:, part.shape[1] :] = 0


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops: the item of (epoch, clip) is a function of (seed, epoch, clip) only.

    An item is a dict of tensors: ``x``, the standardised crop, (1, mels, frames); where asked for,
    ``target``, the clip's labels, (classes,).

    Args:
        data: The opened shards.
        frames: Length of a crop; shorter clips are padded with the mean.
        seed: Of the run.
        labels: Give each item its labels.

    Raises:
        ValueError: A crop has no frames; labels are asked for and the data has none.
    """

    def __init__(self, data: Prepared, frames: int = 208, seed: int = 0, *, labels: bool = False) -> None:
        if frames < 1:
            raise InputError(f"a crop has at least 1 frame, not {frames}")
        if labels:
            require_labels(data.labels, data.folder)
        self.data, self.frames, self.seed, self.labels = data, frames, seed, labels

    def __len__(self) -> int:
        """Return the number of clips, which is that of items in an epoch."""
        return len(self.data)

    def start(self, key: Key) -> int:
        """Return the first frame of a crop: uniform over all starts that stay inside the clip."""
        epoch, clip = key
        starts = max(self.data.frames(clip) - self.frames + 1, 1)
        return draw(starts, self.seed, epoch, clip)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the item of (epoch, clip)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> Items:
        """Return several items at once, side by side in memory: :func:`collate` has nothing left to do."""
        x = _shared((len(keys), 1, self.data.frontend.n_mels, self.frames))
        for out, key in zip(x.numpy(), keys, strict=True):
            crop_into(out[0], self.data.logmel(key[1]), self.start(key), self.data.mean, self.data.std)
        whole = {"x": x}
        if self.labels:
            whole["target"] = torch.stack([self.data.multi_hot(clip) for _, clip in keys])
        return Items(whole)


class Items(list[dict[str, Tensor]]):
    """Items that lie side by side in memory already.

    Args:
        whole: All of them, stacked.
    """

    def __init__(self, whole: dict[str, Tensor]) -> None:
        self.whole = whole
        count = len(whole["x"])
        super().__init__({name: values[index] for name, values in whole.items()} for index in range(count))


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack items, for ``DataLoader(collate_fn=…)``; what lies side by side already is not copied again."""
    if isinstance(items, Items):
        return items.whole
    stacked: dict[str, Tensor] = default_collate(items)
    return stacked


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Return a new tensor; in a loader process it lies in shared memory, so that nothing is copied later."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(  # type: ignore[no-untyped-call]
        4 * math.prod(shape), device="cpu"
    )
    return torch.empty(0).set_(storage).view(shape)


def draw(choices: int, *words: int) -> int:
    """Return a number from 0 to ``choices - 1``, uniform, as a function of the words.

    A hash, because it is asked for once a crop: making a generator of numpy takes ten times as long.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=8).digest()
    return int.from_bytes(digest, "little") % choices


def epoch_order(n_clips: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the clips in an epoch: a permutation that follows from (seed, epoch)."""
    # Four words, so that no crop of three draws from the same stream.
    return np.random.default_rng((seed, epoch, 0, 1)).permutation(n_clips)


@lru_cache(maxsize=4)
def _cached_order(n_clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(n_clips, seed=seed, epoch=epoch)


def batch_keys(step: int, *, batch_size: int, n_clips: int, seed: int) -> list[Key]:
    """Return the keys of a global step's batch.

    The epochs follow one another without a gap: a batch may straddle two of them, or, in a set smaller than
    a batch, hold several.

    Args:
        step: From 0.
        batch_size: Clips in a batch, over all processes.
        n_clips: Clips in the set.
        seed: Of the run.

    Returns:
        ``batch_size`` pairs (epoch, clip).
    """
    first = step * batch_size
    keys = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, n_clips)
        keys.append((epoch, int(_cached_order(n_clips, seed, epoch)[place])))
    return keys


def step_batches(
    data: Prepared, first_step: int, last_step: int, *, batch_size: int, seed: int
) -> StepBatches:
    """Return the batches of some steps, in the order that suits where the data is.

    Args:
        data: Local or remote.
        first_step: As for :class:`StepBatches`, like the rest.
        last_step: One past the last.
        batch_size: Clips in a batch, over all processes.
        seed: Of the run.
    """
    if isinstance(data, LogMelData):
        return StepBatches(first_step, last_step, batch_size=batch_size, n_clips=len(data), seed=seed)
    from hear_m2d.pretrain.data.remote import RemoteData, WindowBatches

    assert isinstance(data, RemoteData)
    return WindowBatches(data, first_step, last_step, batch_size=batch_size, seed=seed)


class StepBatches:
    """The batches of steps ``first_step`` … ``last_step - 1``, for ``DataLoader(batch_sampler=…)``.

    Args:
        first_step: Where to begin; a resumed run's next step.
        last_step: One past the last.
        batch_size: As for :func:`batch_keys`, like the rest.
        n_clips: Clips in the set.
        seed: Of the run.
    """

    def __init__(self, first_step: int, last_step: int, *, batch_size: int, n_clips: int, seed: int) -> None:
        if batch_size < 1 or n_clips < 1:
            raise InputError(f"a batch of {batch_size} clips from a set of {n_clips} cannot be made")
        self.steps = range(first_step, last_step)
        self.batch_size, self.n_clips, self.seed = batch_size, n_clips, seed

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield each step's keys."""
        for step in self.steps:
            yield batch_keys(step, batch_size=self.batch_size, n_clips=self.n_clips, seed=self.seed)
