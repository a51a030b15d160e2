"""Waveforms for fine-tuning: cut or padded to one length, read ahead, kept in memory while they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.audio import read_audio
from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.embeddings import crop_position, fit_length

MEMORY = 4 * 2**30  # bytes of waveforms to keep
READERS = 4


class Waveforms:
    """The clips of a set as tensors of one length.

    Args:
        labeled: The set.
        sample_rate: Hertz.
        samples: Of every clip.
        seed: Of the training crops.
    """

    def __init__(self, labeled: LabeledSet, sample_rate: int, samples: int, seed: int) -> None:
        self.labeled, self.sample_rate, self.samples, self.seed = labeled, sample_rate, samples, seed
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def batches(self, batches: Sequence[NDArray[np.intp]], epoch: int | None) -> Iterator[Tensor]:
        """Yield (clips, samples) for each batch of rows; the next one is read meanwhile.

        Args:
            batches: Rows of the set.
            epoch: A training crop is a function of (seed, epoch, row); None cuts valid clips at a fixed
                random position and test clips at their beginning.

        Raises:
            InputError: A file does not decode.
        """
        with ThreadPoolExecutor(READERS) as pool:
            ahead = [pool.submit(self._clip, row, epoch) for row in batches[0]] if len(batches) else []
            for index in range(len(batches)):
                now, ahead = ahead, []
                if index + 1 < len(batches):
                    ahead = [pool.submit(self._clip, row, epoch) for row in batches[index + 1]]
                yield torch.stack([future.result() for future in now])

    def _clip(self, row: int, epoch: int | None) -> Tensor:
        clip = self.labeled.clips[row]
        audio = self._kept.get(row)
        if audio is None:
            audio = torch.from_numpy(read_audio(clip.path, self.sample_rate))
            if self._bytes + audio.nbytes <= MEMORY:
                self._kept[row] = audio
                self._bytes += audio.nbytes
        if epoch is not None:
            position = float(np.random.default_rng([self.seed, epoch, row]).random())
        else:
            position = crop_position(clip) if clip.split == "valid" else 0.0
        return fit_length(audio, self.samples, position)


def epoch_batches(
    rows: NDArray[np.intp],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
    count: int = 0,
) -> list[NDArray[np.intp]]:
    """Return the batches of an epoch: rows in random order, without the last incomplete batch.

    Args:
        rows: To draw from.
        batch_size: Rows of a batch; fewer where there are fewer.
        seed: Of the run.
        epoch: The order is a function of (seed, epoch).
        weights: Of the rows, to draw without replacement; None draws evenly.
        count: Rows of the epoch; 0 takes all.
    """
    rng = np.random.default_rng([seed, epoch])
    # The smallest of exponential times with the weights as rates: drawing without replacement.
    keys = rng.exponential(size=len(rows)) / (1.0 if weights is None else weights)
    order = rows[np.argsort(keys, kind="stable")][: count or len(rows)]
    size = min(batch_size, len(order))
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def rarity_weights(y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each clip's published sampling weight: (Σ over its labels of 1000 / (count + 0.01))^(1/1.5).

    Args:
        y: 0 and 1, (clips, classes).
    """
    weights: NDArray[np.float64] = (y @ (1000.0 / (y.sum(0) + 0.01))) ** (1 / 1.5)
    return np.maximum(weights, np.finfo(np.float64).tiny)
