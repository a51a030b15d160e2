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
import logging
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hear_m2d.pretrain.dataset import DATA_FILE, DATA_FORMAT, PLAN_FILE, LogMelData, read_summary
from numpy.typing import NDArray
from tqdm import tqdm

from hear_m2d._checkout import installed_version
from hear_m2d.audio import AUDIO_SUFFIXES, AudioError, find_audio, read_audio
from hear_m2d.files import atomic_write, atomic_write_text
from hear_m2d.frontend import FrontendConfig, LogMelSpectrogram

log = logging.getLogger(__name__)

REPORT_FILE = "skipped.csv"
# Digital silence: no sample leaves the middle of the range by more than 1e-4 (-80 dB, three steps of 16 bits:
# zeros, a constant, or dither alone).
SILENCE = 1e-4
_SHARD_FILES = (64, 4096)  # fewest and most files in a shard
_SHARDS = 256  # how many to aim at between those
_BATCH_VALUES = 16 << 20  # log-mel values in a record batch: 32 MiB, all that a worker holds at once
_POOL_FROM_FILES = 400  # below, starting worker processes costs more than it saves

Skipped = tuple[str, str, str]  # file, reason, detail


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


@dataclass(frozen=True)
class _Job:
    """One shard to make: everything a worker needs."""

    index: int
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    out: Path
    frontend: FrontendConfig
    max_clip_s: float

    @property
    def shard(self) -> Path:
        return self.out / f"shard-{self.index:05d}.arrow"

    @property
    def facts(self) -> Path:
        return self.shard.with_suffix(".json")


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

    Files that are corrupt, truncated, empty, silent (:data:`SILENCE`), shorter than one analysis window or
    not readable are left out and listed in ``OUT/skipped.csv``. A file longer than ``max_clip_s`` is cut into
    equal pieces; a silent piece is left out too.

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
        _Job(index, tuple(names[a:b]), tuple(paths[a:b]), out, frontend, max_clip_s)
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


def _workers(asked: int | None, todo: list[_Job]) -> int:
    """Return how many processes to start; 0 means to do the work in this one."""
    if asked is not None:
        return 0 if asked <= 1 else min(asked, len(todo))
    if sum(len(job.names) for job in todo) < _POOL_FROM_FILES:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(processors, 4, len(todo))
    return wanted if wanted > 1 else 0


def _make_all(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Make the shards, and yield each job when it is done."""
    if not workers:
        for job in jobs:
            _make_shard(job)
            yield job
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            running = {pool.submit(_make_shard, job): job for job in jobs}
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make_shard(job: _Job) -> None:
    """Write one shard, then the note that says it is whole."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread everywhere: the same rounding however many workers there are
    try:
        facts = _write_shard(job)
    finally:
        torch.set_num_threads(threads)
    atomic_write_text(job.facts, json.dumps(facts))


def _write_shard(job: _Job) -> dict[str, Any]:
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("start_s", pa.float64()),
            ("frames", pa.int32()),
            ("logmel", pa.large_list(pa.float16())),  # frame after frame, so that a crop is one run of bytes
        ]
    )
    frontend = LogMelSpectrogram(job.frontend)
    skipped: list[Skipped] = []
    clips = frames = samples = 0
    total = squares = 0.0
    rows: list[tuple[str, float, NDArray[np.float16]]] = []
    with atomic_write(job.shard) as file, pa.ipc.new_file(file, schema) as writer:
        for name, start, audio in _pieces(job, skipped):
            with torch.no_grad():
                logmel = frontend(torch.from_numpy(audio)[None])[0].T  # (frames, mels)
            values = logmel.to(torch.float16).contiguous().numpy()
            exact = values.astype(np.float64)
            total += float(exact.sum())
            squares += float(np.square(exact).sum())
            clips, frames, samples = clips + 1, frames + len(values), samples + len(audio)
            rows.append((name, start / job.frontend.sample_rate, values))
            if sum(row[2].size for row in rows) >= _BATCH_VALUES:
                writer.write_batch(_batch(rows, schema))
                rows = []
        if rows:
            writer.write_batch(_batch(rows, schema))
    return {
        "shard": {"file": job.shard.name, "clips": clips, "bytes": job.shard.stat().st_size},
        "frames": frames,
        "samples": samples,
        "sum": total,
        "squares": squares,
        "skipped": skipped,
    }


def _batch(rows: list[tuple[str, float, NDArray[np.float16]]], schema: Any) -> Any:
    files, starts, logmels = zip(*rows, strict=True)
    offsets = np.cumsum([0, *(logmel.size for logmel in logmels)])
    values = pa.array(np.concatenate([logmel.ravel() for logmel in logmels]), pa.float16())
    columns = [
        pa.array([_printable(name) for name in files], pa.string()),
        pa.array(starts, pa.float64()),
        pa.array([len(logmel) for logmel in logmels], pa.int32()),
        pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values),
    ]
    return pa.record_batch(columns, schema=schema)


def _pieces(job: _Job, skipped: list[Skipped]) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
    """Yield (file, first sample, waveform) for each usable clip; note the files that give none."""
    rate = job.frontend.sample_rate
    for name, path in zip(job.names, job.paths, strict=True):
        try:
            audio = read_audio(path, rate)
        except AudioError as error:
            skipped.append((name, error.reason, error.detail))
            continue
        except OSError as error:
            skipped.append((name, "unreadable", error.strerror or str(error)))
            continue
        if len(audio) < job.frontend.n_fft:
            skipped.append((name, "too short", f"{1000 * len(audio) / rate:.1f} ms"))
            continue
        if is_silent(audio):
            skipped.append((name, "silent", f"{len(audio) / rate:.2f} s"))
            continue
        start = 0
        for piece in np.array_split(audio, math.ceil(len(audio) / (job.max_clip_s * rate))):
            if not is_silent(piece):
                yield name, start, piece
            start += len(piece)


def is_silent(audio: NDArray[np.float32]) -> bool:
    """Return whether a waveform is digital silence: zeros, a constant, or no more than dither."""
    return float(np.ptp(audio)) < 2 * SILENCE


def _finish(source: Path, out: Path, plan: dict[str, Any], jobs: list[_Job]) -> Summary:
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
    writer.writerows([_printable(value) for value in row] for row in skipped)
    atomic_write_text(path, text.getvalue())


def _printable(name: str) -> str:
    """Return a file name as UTF-8 text, whatever bytes the file system has."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _remove(out: Path, jobs: list[_Job], *, shards: bool) -> None:
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
