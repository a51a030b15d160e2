"""Which clips make up a step, and every draw: pure functions of (seed, epoch, clip) or (seed, step).

A run that resumes at step n, with any number of loader processes, therefore gets the same batches.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hear_m2d.utils.errors import InputError

Key = tuple[int, int]  # (epoch, clip)


def draw(choices: int, *words: int) -> int:
    """Return a number from 0 to ``choices - 1``, uniform, as a function of the words.

    A hash, because there are several draws for each crop: making a numpy generator takes ten times as long.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=8).digest()
    return int.from_bytes(digest, "little") % choices


@lru_cache(maxsize=4)
def epoch_order(n_clips: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the clips in an epoch: a permutation that follows from (seed, epoch)."""
    # Four words, so that no draw for a crop (three words) uses the same stream.
    return np.random.default_rng((seed, epoch, 0, 1)).permutation(n_clips)


class StepBatches:
    """The batches of steps ``first_step`` … ``last_step - 1``, as lists of keys.

    The epochs follow one another without a gap: a batch may hold the end of one and the beginning of the
    next, or several epochs of a set that is smaller than a batch. ``batch_size`` counts the clips of all
    processes.

    Raises:
        InputError: There is no clip, or a batch is empty.
    """

    def __init__(self, first_step: int, last_step: int, *, batch_size: int, n_clips: int, seed: int) -> None:
        if batch_size < 1 or n_clips < 1:
            raise InputError(f"a batch of {batch_size} clips from a set of {n_clips} cannot be made")
        self.steps = range(first_step, last_step)
        self.batch_size, self.n_clips, self.seed = batch_size, n_clips, seed

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        return map(self.keys, self.steps)

    def keys(self, step: int) -> list[Key]:
        """Return the keys of a step: ``batch_size`` pairs (epoch, clip)."""
        keys = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, self.n_clips)
            keys.append((epoch, int(epoch_order(self.n_clips, seed=self.seed, epoch=epoch)[index])))
        return keys
