"""A prepared set behind an address: whole shards, fetched a window ahead into a bounded cache on disk.

The clips of a few shards (a window) are shuffled together: which shards make up a window, and the order
within it, follows from (seed, epoch), so what a run sees depends neither on its processes nor on what is
cached. A run that resumes begins by fetching the window that it was in.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hear_m2d.checkpoint.download import cache_folder
from hear_m2d.pretrain.data.crops import Key, StepBatches
from hear_m2d.pretrain.data.prepared import DATA_FILE, OpenShard, Prepared, ShardFacts, parse_summary
from hear_m2d.utils.errors import InputError, MissingPackageError
from hear_m2d.utils.files import disk_is_full

logger = logging.getLogger(__name__)

T = TypeVar("T")
WINDOW = 16  # shards: some 13,000 clips of ten seconds are shuffled together, 2 GiB
CACHE_BYTES = 16 << 30
CACHE_VARIABLE = "HEAR_M2D_SHARD_CACHE_GB"
_WAITS_S = (1.0, 4.0, 15.0)  # before each further try


class RemoteData(Prepared):
    """A prepared set behind an address.

    Args:
        address: Of the folder, of any kind that fsspec knows.
        window: Shards that are shuffled together.
        cache_bytes: Most that the cache holds, and never less than three windows; by default 16 GiB, or what
            the environment variable HEAR_M2D_SHARD_CACHE_GB says.

    Raises:
        ValueError: There is no such set, or another format, or an unknown kind of address.
        ConnectionError: It cannot be reached.
        ImportError: The kind of address needs a package that is not installed.
    """

    folder: str

    def __init__(self, address: str, *, window: int = WINDOW, cache_bytes: int | None = None) -> None:
        if window < 1:
            raise InputError(f"a window has at least 1 shard, not {window}")
        address = address.rstrip("/")
        content = _fetch(lambda: _filesystem(address).cat_file(f"{address}/{DATA_FILE}"), address)
        super().__init__(address, parse_summary(content, f"{address}/{DATA_FILE}"))
        self.window = window
        self._arguments: tuple[int, int | None] = (window, cache_bytes)
        self._firsts = np.cumsum([0, *(facts.kept for facts in self.shards)])  # first clip of each shard
        digest = hashlib.sha256(address.encode() + b"\0" + content).hexdigest()[:16]
        self.cache = cache_folder() / f"shards-{digest}"
        if cache_bytes is None:
            cache_bytes = _cache_bytes()
        largest = sorted((facts.bytes for facts in self.shards), reverse=True)
        self.cache_bytes = max(cache_bytes, sum(largest[: 3 * window]))
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __reduce__(self) -> Any:
        return _reopened, (self.folder, *self._arguments)

    def __len__(self) -> int:
        """Return the number of clips."""
        return int(self._firsts[-1])

    def frames(self, index: int) -> int:
        """Return the length of a clip, whose shard is fetched if need be."""
        shard, clip = self._place(index)
        return int(shard.lengths[clip])

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames), whose shard is fetched if need be."""
        shard, clip = self._place(index)
        return shard.logmel(clip)

    def label(self, index: int) -> str:
        """Return a clip's label as the source has it."""
        shard, clip = self._place(index)
        return shard.label(clip)

    def clips_of(self, shard: int) -> range:
        """Return the clips of a shard."""
        return range(int(self._firsts[shard]), int(self._firsts[shard + 1]))

    def fetch(self, number: int) -> Path:
        """Return a shard's file in the cache, fetched if it is not there; several processes fetch it once.

        Raises:
            ConnectionError: It cannot be fetched.
        """
        facts = self.shards[number]
        path = self.cache / facts.file
        self.cache.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # what was used last is removed last
            return path
        with FileLock(self.cache / f".{facts.file}.lock"):
            if not path.exists():
                self._make_room(facts.bytes)
                _fetch(lambda: self._download(facts, path), f"{self.folder}/{facts.file}")
        return path

    def _download(self, facts: ShardFacts, path: Path) -> None:
        for left in self.cache.glob(f".{facts.file}.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        temporary = path.with_name(f".{facts.file}.{os.getpid()}.tmp")
        try:
            _filesystem(self.folder).get_file(f"{self.folder}/{facts.file}", os.fspath(temporary))
            if (size := temporary.stat().st_size) != facts.bytes:
                raise ConnectionError(f"it has {size} bytes instead of {facts.bytes}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Remove what was used longest ago; who has it open keeps it until it is closed."""
        with FileLock(self.cache / ".room.lock"):
            there = []
            for path in self.cache.glob("shard-*.arrow"):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    there.append((facts.st_mtime_ns, facts.st_size, path))
            there.sort()
            held = sum(size for _, size, _ in there)
            for _, size, path in there:
                if held + wanted <= self.cache_bytes:
                    return
                path.unlink(missing_ok=True)
                held -= size

    def _place(self, index: int) -> tuple[OpenShard, int]:
        number = int(np.searchsorted(self._firsts, index, "right")) - 1
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._opened(number)
            while len(self._open) > 2 * self.window:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard, index - int(self._firsts[number])

    def _opened(self, number: int) -> OpenShard:
        for _ in range(3):
            path = self.fetch(number)
            try:
                return OpenShard(path, self.shards[number], self.frontend.n_mels)
            except ValueError:
                if path.exists():  # else another process made room just now
                    path.unlink(missing_ok=True)  # so that the next attempt fetches it anew
        return OpenShard(self.fetch(number), self.shards[number], self.frontend.n_mels)


class WindowBatches(StepBatches):
    """The batches of some steps over a remote set: an order in which each shard is fetched once an epoch.

    Args:
        data: The set.
        first_step: As for :class:`~hear_m2d.pretrain.data.crops.StepBatches`, like the rest.
        last_step: One past the last.
        batch_size: Clips in a batch, over all processes.
        seed: Of the run.
    """

    def __init__(
        self, data: RemoteData, first_step: int, last_step: int, *, batch_size: int, seed: int
    ) -> None:
        super().__init__(first_step, last_step, batch_size=batch_size, n_clips=len(data), seed=seed)
        self.data = data

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield each step's keys, while the shards of the next window are fetched."""
        fetcher = _Fetcher(self.data)
        keys = self._keys(self.steps.start * self.batch_size, fetcher)
        try:
            for _ in self.steps:
                yield list(islice(keys, self.batch_size))
        finally:
            fetcher.stop()

    def windows(self, epoch: int) -> list[list[int]]:
        """Return the shards of an epoch, window after window."""
        full = [number for number, facts in enumerate(self.data.shards) if facts.kept]
        # Four words, the last of which says what is drawn, as for the order of the clips and the noise.
        order = np.random.default_rng((self.seed, epoch, 0, 3)).permutation(full).tolist()
        return [order[first : first + self.data.window] for first in range(0, len(order), self.data.window)]

    def _keys(self, position: int, fetcher: _Fetcher) -> Iterator[Key]:
        """Yield the keys from a position of the stream of epochs on."""
        epoch, skip = divmod(position, self.n_clips)
        windows = self.windows(epoch)
        while True:
            following = self.windows(epoch + 1)
            for number, window in enumerate(windows):
                clips = np.concatenate([self.data.clips_of(shard) for shard in window])
                if skip >= len(clips):
                    skip -= len(clips)
                    continue
                fetcher.want([*window, *[*windows, *following][number + 1]])
                order = np.random.default_rng((self.seed, epoch, number, 4)).permutation(clips)
                for clip in order[skip:].tolist():
                    yield epoch, clip
                skip = 0
            epoch, windows = epoch + 1, following


class _Fetcher:
    """Fetches shards in the background; what it fails at is told by whoever needs that shard."""

    def __init__(self, data: RemoteData) -> None:
        self._data = data
        self._wanted: list[int] = []
        self._news = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def want(self, shards: list[int]) -> None:
        """Fetch these, in this order, and forget what was wanted before."""
        with self._news:
            self._wanted = list(shards)
            self._news.notify()
        if self._thread is None:  # not before the first: loader processes may be forked until then
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Fetch nothing more."""
        with self._news:
            self._wanted, self._stopped = [], True
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._stopped or self._wanted)
                if self._stopped:
                    return
                number = self._wanted.pop(0)
            try:
                self._data.fetch(number)
            except (OSError, ValueError) as error:
                logger.debug("not fetched ahead: %s", error)


def _cache_bytes() -> int:
    """Return the most that the cache holds, as the environment says it."""
    if not (value := os.environ.get(CACHE_VARIABLE)):
        return CACHE_BYTES
    try:
        size = float(value)
    except ValueError:
        size = -1.0
    if not 0 <= size < math.inf:
        raise InputError(f"{CACHE_VARIABLE} is {value!r}; it is a number of GiB, such as 16 or 0.5")
    return int(size * 2**30)


def _filesystem(address: str) -> Any:
    """Return fsspec's file system for an address: one for each process and thread."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)[0]
    except ValueError as error:
        raise InputError(f"{address} is of no kind that fsspec knows: {error}") from error
    except ImportError as error:
        raise MissingPackageError(f"{address} cannot be read: {error}", name=error.name) from error


def _fetch(work: Callable[[], T], address: str) -> T:
    """Do something that needs the network, and try again where that may help."""
    for wait in (*_WAITS_S, None):
        try:
            return work()
        except FileNotFoundError as error:
            raise InputError(f"there is no prepared set at {address}: nothing is found there") from error
        except (ValueError, ImportError):
            raise
        except Exception as error:  # each kind of address has errors of its own
            told = str(error) or type(error).__name__
            if disk_is_full(error):
                raise
            if wait is None:
                raise ConnectionError(f"{address} cannot be fetched: {told}") from error
            logger.warning("%s: %s; again in %g s", address, told, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _reopened(address: str, window: int, cache_bytes: int | None) -> RemoteData:
    return RemoteData(address, window=window, cache_bytes=cache_bytes)
