"""One shard: some audio files → float16 log-mel in Arrow's file format, memory-mappable.

A shard's bytes follow from its own files alone, so shards can be made by any worker in any order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hear_m2d.audio import AudioError
from hear_m2d.model.frontend import FrontendConfig, LogMelSpectrogram
from hear_m2d.pretrain.data.sources.base import Part, Skipped
from hear_m2d.utils.files import atomic_write, atomic_write_text, printable

# Digital silence: no sample leaves the middle of the range by more than 1e-4 (-80 dB, three steps of 16 bits:
# zeros, a constant, or dither alone).
SILENCE = 1e-4
_BATCH_VALUES = 16 << 20  # log-mel values in a record batch: 32 MiB, all that a worker keeps of what it made

SHARD_BYTES = 128 << 20  # of log-mel, about 2.3 hours: a shard that would be larger continues in another file
LABELS = 20_000  # distinct ones that a note lists; a set with more has texts, not classes


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: everything a worker needs.

    Attributes:
        index: Its number.
        part: Its items.
        out: The folder to write.
        frontend: Every number of the log-mel.
        max_clip_s: Longest clip, seconds.
    """

    index: int
    part: Part
    out: Path
    frontend: FrontendConfig
    max_clip_s: float

    @property
    def facts(self) -> Path:
        """Where the note goes that says that the shard is whole, and what it adds to the set's statistics."""
        return facts_path(self.out, self.index)

    def shard(self, number: int) -> Path:
        """Where the shard goes, or its continuation of that number."""
        return self.out / f"shard-{self.index:05d}{f'-{number}' if number else ''}.arrow"


def facts_path(out: Path, index: int) -> Path:
    """Return where the note of a shard goes."""
    return out / f"shard-{index:05d}.json"


def make_shard(job: ShardJob) -> None:
    """Write one shard, then the note that says it is whole."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread everywhere: the same rounding however many workers there are
    try:
        facts = _write_shard(job)
    finally:
        torch.set_num_threads(threads)
    atomic_write_text(job.facts, json.dumps(facts))


@dataclass
class _Sums:
    """What a shard adds to the set."""

    frames: int = 0
    samples: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[np.float16], samples: int) -> None:
        exact = values.astype(np.float64)
        self.total += float(exact.sum())
        self.squares += float(np.square(exact).sum())
        self.frames += len(values)
        self.samples += samples


def _write_shard(job: ShardJob) -> dict[str, Any]:
    skipped: list[Skipped] = []
    lengths: Counter[int] = Counter()
    labels: set[str] = set()
    sums = _Sums()
    shards: list[dict[str, Any]] = []
    clips = _clips(job, skipped)
    waiting = next(clips, None)
    while waiting is not None or not shards:  # a shard without a clip is written too: it is done
        path, held, size = job.shard(len(shards)), 0, 0
        with atomic_write(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
            rows: list[_Clip] = []
            values = 0
            while waiting is not None and size <= SHARD_BYTES - waiting.values.nbytes * (size > 0):
                rows.append(waiting)
                held, size = held + 1, size + waiting.values.nbytes
                sums.add(waiting.values, waiting.samples)
                lengths[len(waiting.values)] += 1
                labels |= set(split_label(waiting.label)) if len(labels) <= LABELS else set()
                values += waiting.values.size
                if values >= _BATCH_VALUES:
                    writer.write_batch(_batch(rows))
                    rows, values = [], 0
                waiting = next(clips, None)
            if rows:
                writer.write_batch(_batch(rows))
        shards.append({"file": path.name, "clips": held, "bytes": path.stat().st_size})
    return {
        "shards": shards,
        "frames": sums.frames,
        "samples": sums.samples,
        "sum": sums.total,
        "squares": sums.squares,
        "lengths": sorted(lengths.items()),
        "labels": sorted(labels),
        "skipped": skipped,
    }


def split_label(label: str | None) -> list[str]:
    """Return the labels of a clip, which are separated by commas."""
    return [one.strip() for one in (label or "").split(",") if one.strip()]


class _Clip(NamedTuple):
    """A row."""

    file: str
    label: str | None
    digest: bytes
    start_s: float
    samples: int
    values: NDArray[np.float16]  # (frames, mels)


SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("label", pa.string()),
        ("digest", pa.binary(16)),  # of the whole file's samples: equal ones are duplicates
        ("start_s", pa.float64()),
        ("samples", pa.int64()),
        ("frames", pa.int32()),
        ("logmel", pa.large_list(pa.float16())),  # frame after frame, so that a crop is one run of bytes
    ]
)


def _batch(rows: list[_Clip]) -> Any:
    logmels = [row.values for row in rows]
    offsets = np.cumsum([0, *(logmel.size for logmel in logmels)])
    values = pa.array(np.concatenate([logmel.ravel() for logmel in logmels]), pa.float16())
    columns = [
        pa.array([printable(row.file) for row in rows], pa.string()),
        pa.array([None if row.label is None else printable(row.label) for row in rows], pa.string()),
        pa.array([row.digest for row in rows], pa.binary(16)),
        pa.array([row.start_s for row in rows], pa.float64()),
        pa.array([row.samples for row in rows], pa.int64()),
        pa.array([len(logmel) for logmel in logmels], pa.int32()),
        pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _clips(job: ShardJob, skipped: list[Skipped]) -> Iterator[_Clip]:
    """Yield the usable clips; note the files that give none."""
    rate = job.frontend.sample_rate
    frontend = LogMelSpectrogram(job.frontend)
    for name, label, read in job.part:
        try:
            audio = read(rate)
        except AudioError as error:
            skipped.append((name, error.reason, error.detail))
            continue
        except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
            skipped.append((name, "unreadable", getattr(error, "strerror", None) or str(error)))
            continue
        if len(audio) < job.frontend.n_fft:
            skipped.append((name, "too short", f"{1000 * len(audio) / rate:.1f} ms"))
            continue
        if is_silent(audio):
            skipped.append((name, "silent", f"{len(audio) / rate:.2f} s"))
            continue
        digest = hashlib.blake2b(audio.tobytes(), digest_size=16).digest()
        start = 0
        for piece in np.array_split(audio, math.ceil(len(audio) / (job.max_clip_s * rate))):
            if not is_silent(piece):
                with torch.no_grad():
                    logmel = frontend(torch.from_numpy(piece)[None])[0].T  # (frames, mels)
                values = logmel.to(torch.float16).contiguous().numpy()
                yield _Clip(name, label, digest, start / rate, len(piece), values)
            start += len(piece)


def is_silent(audio: NDArray[np.float32]) -> bool:
    """Return whether a waveform is digital silence: zeros, a constant, or no more than dither."""
    return float(np.ptp(audio)) < 2 * SILENCE
