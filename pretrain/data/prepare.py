"""Audio → shards of float16 log-mel in Arrow's file format, with the set's own statistics.

The listed items are cut into shards before anything is decoded, so a shard's bytes follow from its own items
alone: however many workers or machines there are, and wherever a run was interrupted, the result is the same.
While work goes on ``plan.json`` says what is being made and ``shard-00000.json`` that a shard is whole; at
the end ``data.json`` takes their place. A folder without ``data.json`` is never taken for a prepared one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.data.finalize import REPORT_FILE, assemble
from hear_m2d.pretrain.data.prepared import DATA_FILE, DATA_FORMAT, PLAN_FILE, LogMelData, read_summary
from hear_m2d.pretrain.data.shards import ShardJob, facts_path, make_shard
from hear_m2d.pretrain.data.sources.base import Source, open_source
from hear_m2d.utils.device import processors
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import atomic_write_text, hold_folder, visible_names
from hear_m2d.utils.progress import ProgressBar

_SHARD_ITEMS = (64, 1024)  # fewest (but for bytes and seams) and most items in a shard
_SHARD_SOURCE_BYTES = 512 << 20  # of files: so that a shard of long ones is not the work of a day
_SHARDS = 256  # how many to aim at between those
_POOL_FROM_ITEMS = 400  # below, starting worker processes costs more than it saves


@dataclass(frozen=True)
class Summary:
    """What was prepared.

    Attributes:
        clips: Clips that are trained on; a long file gives several.
        hours: Hours of audio in them.
        mean: Over every bin of every frame.
        std: Likewise.
        skipped: Number of files left out, by reason.
        report: The list of those files, or None where there are none.
        already: The folder was whole already, and nothing was done.
    """

    clips: int
    hours: float
    mean: float
    std: float
    skipped: dict[str, int]
    report: Path | None
    already: bool = False


@dataclass(frozen=True)
class Made:
    """What one job of an array came to; the set is finished by the command without ``--shard``.

    Attributes:
        shards: How many are this job's.
        missing: How many of the whole set are not made yet.
    """

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

    Files that are corrupt, truncated, empty, silent (:func:`~hear_m2d.pretrain.data.shards.is_silent`),
    shorter than one analysis window, not readable, or equal to an earlier one when decoded, are left out and
    listed in ``OUT/skipped.csv``. A file longer than ``max_clip_s`` is cut into equal pieces; silent pieces
    go.

    Args:
        source: What :func:`~hear_m2d.pretrain.data.sources.base.open_source` takes.
        out: The folder to write.
        sample_rate: Of the front end; files of other rates are resampled.
        max_clip_s: Longest clip, seconds.
        workers: Processes; by default up to 4, and none of its own for a small set.
        ray: The address of a Ray cluster that does the work instead: ``auto``, ``local`` or ``HOST:PORT``.
        progress: Show a progress bar.

    Returns:
        What was prepared.

    Raises:
        ValueError: No usable audio was found, or ``out`` holds something else.
        WorkFailedError: A worker died.
    """
    task = list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
    if task.is_finished():
        LogMelData(task.out)  # raises where a shard is damaged
        return dataclasses.replace(_summary(task.out, read_summary(task.out)), already=True)
    with hold_folder(task.out):
        task.begin()
        _make_all(task, range(len(task.cuts)), workers=workers, ray=ray, progress=progress)
        summary = assemble(task.out, task.plan, task.source.problems)
    return _summary(task.out, summary)


def prepare_shard(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard: tuple[int, int],
    sample_rate: int = 16000,
    max_clip_s: float = 30.0,
    workers: int | None = None,
    progress: bool = False,
) -> Made:
    """Make the i-th of n parts of the shards, as one job of an array; any number may run at the same time.

    Args:
        source: As for :func:`prepare`, like the rest.
        out: The folder to write, which every job sees.
        shard: (i, n), 1 ≤ i ≤ n.
        sample_rate: Of the front end.
        max_clip_s: Longest clip, seconds.
        workers: Processes.
        progress: Show a progress bar.

    Raises:
        ValueError: As for :func:`prepare`; or there is no such part.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise InputError(f"--shard {number}/{count}: there are parts 1/{count} to {count}/{count}")
    task = list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
    mine = range(number - 1, len(task.cuts), count)
    if task.is_finished():
        return Made(len(mine), 0)
    task.begin()
    _make_all(task, mine, workers=workers, progress=progress)
    return Made(len(mine), len(task.todo(range(len(task.cuts)))))


@dataclass(frozen=True)
class Task:
    """A listed source, cut into shards.

    Attributes:
        source: The source.
        out: The folder to write.
        plan: What is to be made: equal plans mean equal shards.
        cuts: First and last-plus-one item of each shard.
    """

    source: Source
    out: Path
    plan: dict[str, Any]
    cuts: tuple[tuple[int, int], ...]

    def is_finished(self) -> bool:
        """Return whether ``out`` holds this very set; raise where it holds another or other things."""
        out = self.out
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; the shards need a folder")
        found = next((out / name for name in (DATA_FILE, PLAN_FILE) if (out / name).is_file()), None)
        if found is None:
            if other := visible_names(out):
                raise InputError(
                    f"{out} holds other files ({', '.join(other[:3])}); give a new or an empty folder"
                )
            return False
        try:
            there = json.loads(found.read_text(encoding="utf-8"))
            differing = [key for key in self.plan if there.get(key) != self.plan[key]]
        except (ValueError, AttributeError) as error:
            raise InputError(f"{found} is damaged: {error}. Remove {out}, or give a new folder.") from error
        if differing:
            told = "; ".join(f"{key}: there {there.get(key)}, asked {self.plan[key]}" for key in differing)
            raise InputError(f"{out} was prepared otherwise ({told}). Give a new folder.")
        return found.name == DATA_FILE

    def begin(self) -> None:
        """Say in the folder what is being made."""
        if not (self.out / PLAN_FILE).is_file():
            atomic_write_text(self.out / PLAN_FILE, json.dumps(self.plan, indent=2) + "\n")

    def todo(self, indices: Sequence[int]) -> list[int]:
        """Return which of these shards are not made yet."""
        there = set(visible_names(self.out))
        return [index for index in indices if facts_path(self.out, index).name not in there]

    def job(self, index: int, out: Path | None = None) -> ShardJob:
        """Return what a worker needs to make a shard; ``out`` is the folder as the worker sees it."""
        frontend = FrontendConfig(**self.plan["frontend"])
        part = self.source.part(*self.cuts[index])
        return ShardJob(index, part, out or self.out, frontend, self.plan["max_clip_s"])

    def items(self, indices: Sequence[int]) -> int:
        """Return how many items these shards have."""
        return sum(last - first for first, last in (self.cuts[index] for index in indices))


def list_work(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, sample_rate: int, max_clip_s: float
) -> Task:
    """List a source and cut it into shards; nothing is written.

    Raises:
        ValueError: There is no audio, or a setting is out of range.
    """
    frontend = FrontendConfig.for_rate(sample_rate)
    if not 1 <= max_clip_s < math.inf:
        raise InputError(f"the longest clip must be at least 1 second, not {max_clip_s}")
    listed = open_source(source)
    cuts = tuple(cut(listed.sizes, listed.seams))
    plan = {
        "format": DATA_FORMAT,
        "frontend": dataclasses.asdict(frontend),
        "max_clip_s": float(max_clip_s),
        "source": listed.facts(),
        "jobs": len(cuts),
    }
    return Task(listed, Path(out), plan, cuts)


def cut(sizes: NDArray[np.int64], seams: NDArray[np.int64] | None = None) -> Iterator[tuple[int, int]]:
    """Yield the first and the last-plus-one item of each shard: a function of the listing alone.

    Args:
        sizes: Bytes of each item.
        seams: Items at which to cut where that can be: what lies between two is read at one go.
    """
    fewest, most = _SHARD_ITEMS
    wanted = min(max(math.ceil(len(sizes) / _SHARDS), fewest), most)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        held = int(np.searchsorted(ends, before + _SHARD_SOURCE_BYTES, "right"))
        last = min(max(held, first + 1), first + (most if seams is not None else wanted), len(sizes))
        if seams is not None and last < len(sizes):
            # The first seam that gives enough items, else the last that there is, else none.
            inside = seams[(seams > first) & (seams <= last)]
            enough = inside[inside - first >= wanted]
            last = int(enough[0] if len(enough) else inside[-1] if len(inside) else last)
        yield first, last
        first = last


def _make_all(
    task: Task, indices: Sequence[int], *, workers: int | None, ray: str | None = None, progress: bool
) -> None:
    """Make those of some shards that are not made yet."""
    todo = task.todo(indices)
    with ProgressBar(total=task.items(indices), unit="file", desc="prepare", disable=not progress) as bar:
        bar.update(task.items(indices) - task.items(todo))
        if ray is not None:
            from hear_m2d.pretrain.data.ray import make_on_ray

            made = make_on_ray(task, todo, address=ray)
        elif count := _workers(workers, todo, task.items(todo)):
            made = _make_in_pool(task, todo, count)
        else:
            made = _make_here(task, todo)
        for index in made:
            bar.update(task.items([index]))


def _workers(asked: int | None, todo: Sequence[int], items: int) -> int:
    """Return how many processes to start; 0 means to do the work in this one."""
    if asked is not None:
        return 0 if asked <= 1 else min(asked, len(todo))
    if items < _POOL_FROM_ITEMS:
        return 0
    wanted = min(processors(), 4, len(todo))
    return wanted if wanted > 1 else 0


def _make_here(task: Task, todo: Sequence[int]) -> Iterator[int]:
    for index in todo:
        make_shard(task.job(index))
        yield index


def _make_in_pool(task: Task, todo: Sequence[int], workers: int) -> Iterator[int]:
    """Make the shards in processes, and yield each one's number when it is done."""
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    waiting = iter(todo)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            running: dict[Any, int] = {}
            while True:
                # Few are handed over ahead: each holds the names of its items once more.
                while len(running) < 2 * workers and (index := next(waiting, None)) is not None:
                    running[pool.submit(make_shard, task.job(index))] = index
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool as error:
            raise WorkFailedError(
                "a worker process died, perhaps for lack of memory. The same command continues; "
                "with --workers 1 a file that kills its reader ends the command itself"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this worker when the command is killed; it would wait for work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _summary(out: Path, data: dict[str, Any]) -> Summary:
    return Summary(
        clips=data["clips"],
        hours=data["hours"],
        mean=data["mean"],
        std=data["std"],
        skipped=data["skipped"],
        report=out / REPORT_FILE if data["skipped"] else None,
    )
