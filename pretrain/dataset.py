"""Prepared shards → standardised random crops, each a pure function of (seed, epoch, clip).

The shards stay on disk, memory-mapped. Which clips make up step n, and where each is cropped, follows from
the numbers alone: a run that resumes at step n, with any number of loader processes, sees what it would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hear_m2d.frontend import FrontendConfig

DATA_FORMAT = 1
DATA_FILE, PLAN_FILE = "data.json", "plan.json"
Key = tuple[int, int]  # (epoch, clip)


class LogMelData:
    """A folder written by ``hear-m2d prepare``, opened: shards of float16 log-mel, memory-mapped.

    Args:
        folder: The folder.

    Attributes:
        frontend: Every number of the log-mel.
        mean: Over every bin of every frame of the set.
        std: Likewise.
        hours: Hours of audio.
        summary: What ``data.json`` says.
        lengths: Frames of each clip, (clips,).

    Raises:
        ValueError: It is no such folder, not finished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.summary = read_summary(self.folder)
        try:
            self.frontend = FrontendConfig(**self.summary["frontend"])
            self.mean, self.std = float(self.summary["mean"]), float(self.summary["std"])
            self.hours = float(self.summary["hours"])
            shards = [
                (str(shard["file"]), shard["clips"], shard["bytes"]) for shard in self.summary["shards"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder / DATA_FILE} is damaged: {error}. Prepare it anew.") from error
        self._values: list[NDArray[np.float16]] = []  # one flat view for each record batch
        lengths, starts, batches = [], [], []
        for name, expected, size in shards:
            clips = 0
            for batch in _open_shard(self.folder / name, size):
                logmel = batch.column("logmel")
                frames = batch.column("frames").to_numpy()
                lengths.append(frames)
                starts.append(logmel.offsets.to_numpy()[:-1])
                batches.append(np.full(len(frames), len(self._values)))
                self._values.append(logmel.values.to_numpy())
                clips += len(frames)
            if clips != expected:
                raise ValueError(
                    f"{self.folder / name} holds {clips} clips where {DATA_FILE} says {expected}: "
                    f"the folder is damaged. Prepare it anew."
                )
        self.lengths: NDArray[np.int64] = np.concatenate(lengths).astype(np.int64)
        self._starts: NDArray[np.int64] = np.concatenate(starts).astype(np.int64)
        self._batches: NDArray[np.int64] = np.concatenate(batches).astype(np.int64)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[LogMelData], tuple[Path]]:
        return LogMelData, (self.folder,)  # a loader process that is spawned maps the files itself

    def frames(self, index: int) -> int:
        """Return the length of a clip."""
        return int(self.lengths[index])

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames): a read-only view of the file."""
        frames, start = int(self.lengths[index]), int(self._starts[index])
        flat = self._values[self._batches[index]][start : start + frames * self.frontend.n_mels]
        view: NDArray[np.float16] = flat.reshape(frames, self.frontend.n_mels).T
        return view


def is_prepared(folder: Path) -> bool:
    """Return whether ``hear-m2d prepare`` wrote here, finished or not; a data set may own a data.json too."""
    for name, key in ((DATA_FILE, "frontend"), (PLAN_FILE, "format")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and key in found:
            return True
    return any(folder.glob("shard-*.arrow")) if folder.is_dir() else False


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what a prepared folder says about itself.

    Args:
        folder: The folder.

    Raises:
        ValueError: It is not a finished one of this format.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        if (folder / PLAN_FILE).is_file():
            raise ValueError(f"{folder} is half prepared. The same `hear-m2d prepare` command finishes it.")
        raise ValueError(
            f"{folder} is no prepared folder, it has no {DATA_FILE}. "
            f"Type: hear-m2d prepare AUDIO_DIR {folder}"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        number = summary["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Prepare the folder anew.") from error
    if number != DATA_FORMAT:
        raise ValueError(
            f"{path} has format {number}; this version reads {DATA_FORMAT}. Prepare the folder anew."
        )
    return cast(dict[str, Any], summary)


def _open_shard(path: Path, size: int) -> Iterator[Any]:
    """Yield the record batches of a shard, without copying."""
    if not path.is_file() or (actual := path.stat().st_size) != size:
        what = f"has {actual} bytes instead of {size}" if path.is_file() else "is missing"
        raise ValueError(f"{path} {what}: the folder is damaged. Prepare it anew.")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: {error}. Prepare the folder anew.") from error


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
    part = logmel[:, start : start + frames]
    # Copied frame after frame, as it lies on disk; torch turns float16 into float32 twice as fast as numpy.
    copied = torch.from_numpy(np.array(part.T)).float().sub_(mean).mul_(1.0 / std)
    out = np.zeros((logmel.shape[0], frames), np.float32)
    out[:, : part.shape[1]] = copied.numpy().T
    return out


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops: the item of (epoch, clip) is a function of (seed, epoch, clip) only.

    An item is a dict of tensors: ``x``, the standardised crop, (1, mels, frames).

    Args:
        data: The opened shards.
        frames: Length of a crop; shorter clips are padded with the mean.
        seed: Of the run.
    """

    def __init__(self, data: LogMelData, frames: int = 208, seed: int = 0) -> None:
        if frames < 1:
            raise ValueError(f"a crop has at least 1 frame, not {frames}")
        self.data, self.frames, self.seed = data, frames, seed

    def __len__(self) -> int:
        """Return the number of clips, which is that of items in an epoch."""
        return len(self.data)

    def start(self, key: Key) -> int:
        """Return the first frame of a crop: uniform over all starts that stay inside the clip."""
        epoch, clip = key
        starts = max(self.data.frames(clip) - self.frames + 1, 1)
        return int(np.random.default_rng((self.seed, epoch, clip)).integers(starts))

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the item of (epoch, clip)."""
        logmel = self.data.logmel(key[1])
        x = crop(logmel, self.start(key), self.frames, self.data.mean, self.data.std)
        return {"x": torch.from_numpy(x)[None]}


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
            raise ValueError(f"a batch of {batch_size} clips from a set of {n_clips} cannot be made")
        self.steps = range(first_step, last_step)
        self.batch_size, self.n_clips, self.seed = batch_size, n_clips, seed

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield each step's keys."""
        for step in self.steps:
            yield batch_keys(step, batch_size=self.batch_size, n_clips=self.n_clips, seed=self.seed)
