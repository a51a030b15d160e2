"""Audio → shards of float16 log-mel in Arrow's file format, with the set's own statistics.

The listed items are cut into shards before anything is decoded, so a shard's bytes follow from its own items
alone: however many workers or machines there are, and wherever a run was interrupted, the result is the same.
While work goes on ``plan.json`` says what is being made and ``shard-00000.json`` that a shard is complete; at
the end ``data.json`` replaces them. A folder without ``data.json`` is never taken for a prepared one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.data.finalize import REPORT_FILE, finalize
from hear_m2d.pretrain.data.prepared import DATA_FILE, DATA_FORMAT, PLAN_FILE, LogMelData
from hear_m2d.pretrain.data.shards import ShardJob, make_shard, statistics_path
from hear_m2d.pretrain.data.sources import open_source
from hear_m2d.pretrain.data.sources.base import Source
from hear_m2d.utils.device import processors
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import differences, folder_owner, lock_folder, visible_names, write_json
from hear_m2d.utils.parallel import ProcessDiedError, map_processes
from hear_m2d.utils.progress import ProgressBar

_SHARD_ITEMS = (64, 1024)  # minimum (except for bytes and seams) and maximum number of items in a shard
_SHARD_SOURCE_BYTES = 512 << 20  # bytes of audio files: a shard of long files must not take a day
_SHARDS = 256  # target number of shards, within these limits
_POOL_FROM_ITEMS = 400  # below, starting worker processes costs more than it saves


class Summary(NamedTuple):
    """The result of :func:`prepare`.

    Attributes:
        clips: Clips; a long file gives several.
        hours: Hours of audio in them.
        mean: Over every bin of every frame.
        std: Standard deviation over the same.
        skipped: Number of files left out, by reason.
        report: The file that lists them; None if there are none.
        already: Whether the folder was already complete, so that nothing was done.
    """

    clips: int
    hours: float
    mean: float
    std: float
    skipped: dict[str, int]
    report: Path | None
    already: bool = False


class PartSummary(NamedTuple):
    """The result of one job of an array: its shards, and those of the whole set that are not written yet."""

    shards: int
    missing: int


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sample_rate: int = 16000,
    max_clip_s: float = 30.0,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> Summary:
    """Prepare audio for pretraining; continue where an interrupted run, or the jobs of an array, stopped.

    Files that cannot be used are left out and listed in ``OUT/skipped.csv`` (docs/data.md has the reasons). A
    file longer than ``max_clip_s`` is cut into equal pieces; silent pieces are left out.

    Args:
        source: See :func:`~hear_m2d.pretrain.data.sources.open_source`.
        out: The folder to write.
        sample_rate: Of the front end; files of other rates are resampled.
        max_clip_s: Longest clip, seconds.
        workers: Processes; by default one for each processor, and none for a small set.
        ray: The address of a Ray cluster that does the work instead: ``auto``, ``local`` or ``HOST:PORT``.
        progress: Show a progress bar.

    Returns:
        The summary of the set.

    Raises:
        InputError: There is no usable audio, or ``out`` holds something else, or a process works in it.
        WorkFailedError: A worker died, or data could not be fetched.
    """
    task = list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
    already = task.is_finished()
    if already:
        summary = LogMelData(task.out).summary  # raises if a shard is damaged
    else:
        with lock_folder(task.out), ExitStack() as jobs:
            for path in task.out.glob(".job-*.lock"):  # a job of an array that is still running
                jobs.enter_context(lock_folder(task.out, path.name))
            task.begin()
            _make_all(task, range(len(task.cuts)), workers=workers, ray=ray, progress=progress)
            summary = finalize(task.out, task.plan, task.source.problems)
    numbers = {name: summary[name] for name in ("clips", "hours", "mean", "std", "skipped")}
    report = task.out / REPORT_FILE if summary["skipped"] else None
    return Summary(**numbers, report=report, already=already)


def prepare_shard(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard: tuple[int, int],
    sample_rate: int = 16000,
    max_clip_s: float = 30.0,
    workers: int | None = None,
    progress: bool = False,
) -> PartSummary:
    """Make the i-th of n parts of the shards, as one job of an array; any number may run at the same time.

    Every job sees ``out``. ``shard`` is (i, n), 1 ≤ i ≤ n; the other arguments are those of :func:`prepare`.

    Raises:
        InputError: As for :func:`prepare`; or there is no such part, or another process makes it.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise InputError(f"--shard {number}/{count}: there are parts 1/{count} to {count}/{count}")
    task = list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
    mine = range(number - 1, len(task.cuts), count)
    if task.is_finished():
        return PartSummary(len(mine), 0)
    with ExitStack() as job:
        with lock_folder(task.out, timeout_s=10):  # for a moment, against a command that finishes the set
            job.enter_context(lock_folder(task.out, f".job-{number}-of-{count}.lock"))
        task.begin()
        _make_all(task, mine, workers=workers, progress=progress)
    return PartSummary(len(mine), len(task.todo(range(len(task.cuts)))))


@dataclass(frozen=True)
class Task:
    """A listed source, cut into shards."""

    source: Source
    out: Path
    plan: dict[str, Any]  # describes the shards: equal plans mean equal shards
    cuts: tuple[tuple[int, int], ...]  # first and last-plus-one item of each shard

    def is_finished(self) -> bool:
        """Return whether ``out`` holds this set; raise an InputError if it holds another or other files."""
        metadata = DATA_FILE if (self.out / DATA_FILE).is_file() else PLAN_FILE
        known = folder_owner(self.out, metadata)
        if known is None:
            return False
        if differing := differences(known, self.plan):
            raise InputError(f"{self.out} was prepared with other settings: {differing}. Give a new folder")
        return metadata == DATA_FILE

    def begin(self) -> None:
        """Write the plan into the folder."""
        if not (self.out / PLAN_FILE).is_file():
            write_json(self.out / PLAN_FILE, self.plan)

    def todo(self, indices: Sequence[int]) -> list[int]:
        """Return which of these shards are not made yet."""
        made = set(visible_names(self.out))
        return [index for index in indices if statistics_path(self.out, index).name not in made]

    def jobs(self, indices: Iterable[int]) -> Iterator[ShardJob]:
        """Yield what a worker needs to make each shard, with paths that do not depend on its own folder."""
        out = Path(os.path.abspath(self.out))  # noqa: PTH100
        frontend = FrontendConfig(**self.plan["frontend"])
        for index in indices:
            part = self.source.part(*self.cuts[index])
            yield ShardJob(index, part, out, frontend, self.plan["max_clip_s"])

    def items(self, indices: Iterable[int]) -> int:
        """Return how many items these shards have."""
        return sum(last - first for first, last in (self.cuts[index] for index in indices))


def list_work(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, sample_rate: int, max_clip_s: float
) -> Task:
    """List a source and cut it into shards; nothing is written."""
    frontend = FrontendConfig.for_rate(sample_rate)
    if not 1 <= max_clip_s < math.inf:
        raise InputError(f"the longest clip must be at least 1 second, got {max_clip_s}")
    listed = open_source(source)
    cuts = tuple(cut(listed.sizes, listed.seams))
    plan = {
        "format": DATA_FORMAT,
        "frontend": dataclasses.asdict(frontend),
        "max_clip_s": float(max_clip_s),
        "source": listed.describe(),
        "jobs": len(cuts),
    }
    return Task(listed, Path(out), plan, cuts)


def cut(sizes: NDArray[np.int64], seams: NDArray[np.int64] | None = None) -> Iterator[tuple[int, int]]:
    """Yield the first and the last-plus-one item of each shard: a function of the listing alone."""
    fewest, most = _SHARD_ITEMS
    wanted = min(max(math.ceil(len(sizes) / _SHARDS), fewest), most)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, before + _SHARD_SOURCE_BYTES, "right"))
        last = min(max(fitting, first + 1), first + (most if seams is not None else wanted), len(sizes))
        if seams is not None and last < len(sizes):
            # The first seam that gives enough items; without one, the last seam; without any, no seam.
            inside = seams[(seams > first) & (seams <= last)]
            enough = inside[inside - first >= wanted]
            last = int(enough[0] if len(enough) else inside[-1] if len(inside) else last)
        yield first, last
        first = last


def _make_all(
    task: Task, indices: Sequence[int], *, workers: int | None, ray: str | None = None, progress: bool
) -> None:
    """Write the shards that do not exist yet: on a cluster, in processes, or in this process."""
    todo = task.todo(indices)
    if workers is None:
        workers = processors() if task.items(todo) >= _POOL_FROM_ITEMS else 1
    made: Iterator[int]
    if ray is not None and todo:
        from hear_m2d.pretrain.data.ray import make_on_ray

        made = make_on_ray(task.jobs(todo), address=ray)
    elif min(workers, len(todo)) > 1:
        made = _make_in_processes(task, todo, min(workers, len(todo)))
    else:
        made = map(make_shard, task.jobs(todo))
    with ProgressBar(total=task.items(indices), unit="file", desc="prepare", disable=not progress) as bar:
        bar.update(task.items(indices) - task.items(todo))
        for index in made:
            bar.update(task.items([index]))


def _make_in_processes(task: Task, todo: Sequence[int], workers: int) -> Iterator[int]:
    results = map_processes(make_shard, task.jobs(todo), workers=workers, preload=[make_shard.__module__])
    with closing(results):
        for job, result in results:
            if isinstance(result, ProcessDiedError):
                names = [item.name for item in job.part]
                raise WorkFailedError(
                    f"the process that makes shard {job.index} died twice, for lack of memory, or over "
                    f"one of its files ({names[0]} to {names[-1]}). The same command continues"
                ) from result
            yield result
