"""Audio files → shards of float16 log-mel in Arrow's file format, with the set's own statistics.

The sorted list of files is cut into shards before anything is decoded, so a shard's bytes follow from its
own files alone: however many workers there are, and wherever a run was interrupted, the result is the same.
While work goes on ``plan.json`` says what is being made and ``shard-00000.json`` that a shard is whole; at
the end ``data.json`` takes their place. A folder without ``data.json`` is never taken for a prepared one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hear_m2d._checkout import installed_version
from hear_m2d.audio import AUDIO_SUFFIXES, find_audio
from hear_m2d.errors import WorkFailedError
from hear_m2d.files import atomic_write_text
from hear_m2d.frontend import FrontendConfig
from hear_m2d.pretrain.dataset import DATA_FILE, DATA_FORMAT, PLAN_FILE, LogMelData, read_summary
from hear_m2d.pretrain.shards import ShardJob, Skipped, make_shard, printable

REPORT_FILE = "skipped.csv"
_SHARD_FILES = (64, 4096)  # fewest and most files in a shard
_SHARDS = 256  # how many to aim at between those
_POOL_FROM_FILES = 400  # below, starting worker processes costs more than it saves


@dataclass(frozen=True)
class Summary:
    """What was prepared.

    Attributes:
        clips: Clips in the shards; a long file gives several.
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


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sample_rate: int = 16000,
    max_clip_s: float = 30.0,
    workers: int | None = None,
    progress: bool = False,
) -> Summary:
    """Prepare a folder of audio for pretraining; continue where an interrupted run stopped.

    Files that are corrupt, truncated, empty, silent (:func:`~hear_m2d.pretrain.shards.is_silent`), shorter
    than one analysis window or not readable are left out and listed in ``OUT/skipped.csv``. A file longer
    than ``max_clip_s`` is cut into equal pieces; a silent piece is left out too.

    Args:
        source: A folder of audio files, or one file.
        out: The folder to write.
        sample_rate: Of the front end; files of other rates are resampled.
        max_clip_s: Longest clip, seconds.
        workers: Processes; by default up to 4, and none of its own for a small set.
        progress: Show a progress bar.

    Returns:
        What was prepared.

    Raises:
        ValueError: No usable audio was found, or ``out`` holds something else.
    """
    source, out = Path(source), Path(out)
    frontend = FrontendConfig.for_rate(sample_rate)
    if max_clip_s < 1:
        raise ValueError(f"the longest clip must be at least 1 second, not {max_clip_s}")
    paths = find_audio(source)
    if not paths:
        raise ValueError(f"{source} holds no audio: no file ends in {' '.join(sorted(AUDIO_SUFFIXES))}")
    root = source if source.is_dir() else source.parent
    names = [path.relative_to(root).as_posix() for path in paths]
    plan = _plan(source, names, paths, frontend=frontend, max_clip_s=max_clip_s)
    if _is_finished(out, plan):
        LogMelData(out)  # raises where a shard is damaged
        return dataclasses.replace(_summary(out, read_summary(out)), already=True)
    atomic_write_text(out / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
    jobs = [
        ShardJob(index, tuple(names[a:b]), tuple(paths[a:b]), out, frontend, max_clip_s)
        for index, (a, b) in enumerate(_cuts(len(paths)))
    ]
    todo = [job for job in jobs if not job.facts.is_file()]
    with tqdm(total=len(paths), unit="file", desc="prepare", disable=not progress) as bar:
        bar.update(len(paths) - sum(len(job.names) for job in todo))
        for done in _make_all(todo, _workers(workers, todo)):
            bar.update(len(done.names))
    return _finish(source, out, plan, jobs)


def _plan(
    source: Path, names: list[str], paths: list[Path], *, frontend: FrontendConfig, max_clip_s: float
) -> dict[str, Any]:
    """Describe the work; equal descriptions mean equal shards."""
    sizes = [path.stat().st_size for path in paths]
    listing = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        listing.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return {
        "format": DATA_FORMAT,
        "frontend": dataclasses.asdict(frontend),
        "max_clip_s": max_clip_s,
        "source": {
            "name": source.resolve().name,
            "files": len(paths),
            "bytes": sum(sizes),
            "sha256_of_names_and_sizes": listing.hexdigest(),
        },
    }


def _is_finished(out: Path, plan: dict[str, Any]) -> bool:
    """Return whether ``out`` holds this very set; raise where it holds another or other things."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the shards need a folder")
    found = next((out / name for name in (DATA_FILE, PLAN_FILE) if (out / name).is_file()), None)
    if found is None:
        if out.is_dir() and (other := sorted(path.name for path in out.iterdir() if path.name[0] != ".")):
            raise ValueError(
                f"{out} holds other files ({', '.join(other[:3])}); give a new or an empty folder"
            )
        return False
    try:
        there = json.loads(found.read_text(encoding="utf-8"))
        differing = [key for key in plan if there.get(key) != plan[key]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{found} is damaged: {error}. Remove {out}, or give a new folder.") from error
    if differing:
        told = "; ".join(f"{key}: there {there.get(key)}, asked {plan[key]}" for key in differing)
        raise ValueError(f"{out} was prepared otherwise ({told}). Give a new folder.")
    return found.name == DATA_FILE


def _cuts(n_files: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last-plus-one file of each shard: a function of the number of files."""
    fewest, most = _SHARD_FILES
    size = min(max(math.ceil(n_files / _SHARDS), fewest), most)
    for first in range(0, n_files, size):
        yield first, min(first + size, n_files)


def _workers(asked: int | None, todo: list[ShardJob]) -> int:
    """Return how many processes to start; 0 means to do the work in this one."""
    if asked is not None:
        return 0 if asked <= 1 else min(asked, len(todo))
    if sum(len(job.names) for job in todo) < _POOL_FROM_FILES:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(processors, 4, len(todo))
    return wanted if wanted > 1 else 0


def _make_all(jobs: list[ShardJob], workers: int) -> Iterator[ShardJob]:
    """Make the shards, and yield each job when it is done."""
    if not workers:
        for job in jobs:
            make_shard(job)
            yield job
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            running = {pool.submit(make_shard, job): job for job in jobs}
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BrokenProcessPool as error:
            raise WorkFailedError(
                "a worker process died, perhaps for lack of memory. The same command continues; "
                "with --workers 1 a file that kills its reader ends the command itself"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finish(source: Path, out: Path, plan: dict[str, Any], jobs: list[ShardJob]) -> Summary:
    """Add the shards' facts up, and put ``data.json`` in the place of the notes."""
    facts = [json.loads(job.facts.read_text(encoding="utf-8")) for job in jobs]
    skipped: list[Skipped] = [tuple(entry) for fact in facts for entry in fact["skipped"]]
    counts = dict(sorted(Counter(reason for _, reason, _ in skipped).items()))
    frames = sum(fact["frames"] for fact in facts)
    if not frames:
        _remove(out, jobs, shards=True)
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise ValueError(
            f"{source} holds no usable audio: of {len(skipped)} files that look like it, {told} "
            f"(the first: {skipped[0][0]}, {skipped[0][1]}: {skipped[0][2]})"
        )
    values = frames * plan["frontend"]["n_mels"]
    mean = math.fsum(fact["sum"] for fact in facts) / values
    variance = math.fsum(fact["squares"] for fact in facts) / values - mean**2
    summary = plan | {
        "version": installed_version(),
        "clips": sum(fact["shard"]["clips"] for fact in facts),
        "frames": frames,
        "hours": sum(fact["samples"] for fact in facts) / plan["frontend"]["sample_rate"] / 3600,
        "mean": mean,
        "std": math.sqrt(variance),
        "skipped": counts,
        "shards": [fact["shard"] for fact in facts],
    }
    _write_report(out / REPORT_FILE, skipped)
    atomic_write_text(out / DATA_FILE, json.dumps(summary, indent=2) + "\n")
    _remove(out, jobs, shards=False)
    return _summary(out, summary)


def _write_report(path: Path, skipped: Iterable[Skipped]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    writer.writerows([printable(value) for value in row] for row in skipped)
    atomic_write_text(path, text.getvalue())


def _remove(out: Path, jobs: list[ShardJob], *, shards: bool) -> None:
    """Remove the notes, what an interrupted write left, and the shards themselves if asked to."""
    for job in jobs:
        job.facts.unlink(missing_ok=True)
        if shards:
            job.shard.unlink(missing_ok=True)
    for rest in [out / PLAN_FILE, *out.glob(".shard-*.tmp")]:
        rest.unlink(missing_ok=True)
    if shards and not any(out.iterdir()):
        out.rmdir()


def _summary(out: Path, data: dict[str, Any]) -> Summary:
    return Summary(
        clips=data["clips"],
        hours=data["hours"],
        mean=data["mean"],
        std=data["std"],
        skipped=data["skipped"],
        report=out / REPORT_FILE if data["skipped"] else None,
    )
