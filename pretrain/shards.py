"""One shard: some audio files → float16 log-mel in Arrow's file format, memory-mappable.

A shard's bytes follow from its own files alone, so shards can be made by any worker in any order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hear_m2d.audio import AudioError, read_audio
from hear_m2d.files import atomic_write, atomic_write_text
from hear_m2d.frontend import FrontendConfig, LogMelSpectrogram

# Digital silence: no sample leaves the middle of the range by more than 1e-4 (-80 dB, three steps of 16 bits:
# zeros, a constant, or dither alone).
SILENCE = 1e-4
_BATCH_VALUES = 16 << 20  # log-mel values in a record batch: 32 MiB, all that a worker keeps of what it made

Skipped = tuple[str, str, str]  # file, reason, detail


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: everything a worker needs.

    Attributes:
        index: Its number.
        names: Its files, relative to the source.
        paths: Where they are.
        out: The folder to write.
        frontend: Every number of the log-mel.
        max_clip_s: Longest clip, seconds.
    """

    index: int
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    out: Path
    frontend: FrontendConfig
    max_clip_s: float

    @property
    def shard(self) -> Path:
        """Where the shard goes."""
        return self.out / f"shard-{self.index:05d}.arrow"

    @property
    def facts(self) -> Path:
        """Where the note goes that says that the shard is whole, and what it adds to the set's statistics."""
        return self.shard.with_suffix(".json")


def make_shard(job: ShardJob) -> None:
    """Write one shard, then the note that says it is whole."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread everywhere: the same rounding however many workers there are
    try:
        facts = _write_shard(job)
    finally:
        torch.set_num_threads(threads)
    atomic_write_text(job.facts, json.dumps(facts))


def _write_shard(job: ShardJob) -> dict[str, Any]:
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
        pa.array([printable(name) for name in files], pa.string()),
        pa.array(starts, pa.float64()),
        pa.array([len(logmel) for logmel in logmels], pa.int32()),
        pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values),
    ]
    return pa.record_batch(columns, schema=schema)


def _pieces(job: ShardJob, skipped: list[Skipped]) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
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


def printable(name: str) -> str:
    """Return a file name as UTF-8 text, whatever bytes the file system has."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
