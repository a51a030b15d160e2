"""The end of `hear-m2d prepare`: the shards' notes added up, duplicates marked, ``data.json`` written.

A file that decodes to the samples of an earlier one may lie in another shard than that one, so this is known
only when every shard is there. Shards are not rewritten: ``data.json`` says which of their clips to drop.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hear_m2d._checkout import installed_version
from hear_m2d.pretrain.data.prepared import DATA_FILE, PLAN_FILE
from hear_m2d.pretrain.data.shards import LABELS, facts_path
from hear_m2d.pretrain.data.sources.base import Skipped
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text, printable, remove_leftovers

REPORT_FILE = "skipped.csv"


def assemble(out: Path, plan: Mapping[str, Any], problems: Sequence[Skipped] = ()) -> dict[str, Any]:
    """Add the shards' notes up, and put ``data.json`` in their place.

    Args:
        out: The folder; every shard of the plan is there.
        plan: What was made.
        problems: What could not be listed.

    Returns:
        What ``data.json`` says.

    Raises:
        ValueError: No clip is left; the folder is then emptied.
    """
    facts = [_note(facts_path(out, index)) for index in range(plan["jobs"])]
    skipped = list(problems) + [tuple(entry) for fact in facts for entry in fact["skipped"]]
    shards = [shard for fact in facts for shard in fact["shards"]]
    if not any(shard["clips"] for shard in shards):
        _remove(out, plan["jobs"], shards)
        (out / ".lock").unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()
        raise _nothing_left(plan["source"]["name"], skipped)
    drops = _duplicates(out, shards)
    skipped += drops.report
    frames = sum(fact["frames"] for fact in facts) - drops.frames
    values = frames * plan["frontend"]["n_mels"]
    mean = math.fsum([*(fact["sum"] for fact in facts), -drops.total]) / values
    squares = math.fsum([*(fact["squares"] for fact in facts), -drops.squares])
    lengths = sum((Counter(dict(fact["lengths"])) for fact in facts), Counter())
    lengths.subtract(drops.lengths)
    labels = set().union(*(fact["labels"] for fact in facts))
    samples = sum(fact["samples"] for fact in facts) - drops.samples
    summary = {
        **plan,
        "version": installed_version(),
        "clips": sum(shard["clips"] for shard in shards) - drops.clips,
        "frames": frames,
        "hours": samples / plan["frontend"]["sample_rate"] / 3600,
        "mean": mean,
        "std": math.sqrt(squares / values - mean**2),
        "skipped": dict(sorted(Counter(reason for _, reason, _ in skipped).items())),
        "lengths": [[length, clips] for length, clips in sorted(lengths.items()) if clips],
        "labels": sorted(labels) if len(labels) <= LABELS else [],
        "shards": [{**shard, "dropped": drops.ranges.get(shard["file"], [])} for shard in shards],
    }
    _write_report(out / REPORT_FILE, skipped)
    atomic_write_text(out / DATA_FILE, _readable(summary))
    _remove(out, plan["jobs"], ())
    return summary


@dataclass
class _Drops:
    """The clips of duplicates, and what they had added to the set."""

    ranges: dict[str, list[list[int]]] = field(default_factory=dict)  # of each shard: first, last-plus-one
    report: list[Skipped] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    clips: int = 0
    frames: int = 0
    samples: int = 0
    total: float = 0.0
    squares: float = 0.0

    def drop(self, table: Any, shard: str, first: int, last: int) -> None:
        """Count a run of clips out."""
        rows = table.slice(first, last - first)
        frames = rows["frames"].to_pylist()
        self.ranges.setdefault(shard, []).append([first, last])
        self.lengths.update(frames)
        self.clips += len(frames)
        self.frames += sum(frames)
        self.samples += sum(rows["samples"].to_pylist())
        for logmel in rows["logmel"]:  # clip by clip, as they were added
            exact = logmel.values.to_numpy().astype(np.float64)
            self.total += float(exact.sum())
            self.squares += float(np.square(exact).sum())


@dataclass(frozen=True)
class _Runs:
    """Clips of one file that lie side by side, for each such run of the set, in order.

    Attributes:
        digests: Of the file's samples, as two words, (runs, 2).
        places: Number of the shard, first clip, last-plus-one, (runs, 3).
        files: Number of the file, (runs,): one that is cut by the end of a shard has two runs.
    """

    digests: NDArray[np.uint64]
    places: NDArray[np.int64]
    files: NDArray[np.int64]


def _duplicates(out: Path, shards: Sequence[Mapping[str, Any]]) -> _Drops:
    """Find the files that decode to the same samples as an earlier one."""
    drops = _Drops()
    runs = _runs(out, shards)
    order = np.lexsort((runs.digests[:, 1], runs.digests[:, 0]))  # stable: the first one first
    ordered = runs.digests[order]
    again = np.r_[False, (ordered[1:] == ordered[:-1]).all(axis=1)]
    origin = np.empty_like(order)  # of each run: the first one of the same sound
    origin[order] = order[np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))]
    told = -1
    for run in np.flatnonzero(runs.files[origin] != runs.files).tolist():
        number, first, last = runs.places[run].tolist()
        with _opened(out / shards[number]["file"]) as table:
            drops.drop(table, shards[number]["file"], first, last)
            name = table["file"][first].as_py()
        if runs.files[run] != told:
            told = int(runs.files[run])
            at, clip, _ = runs.places[origin[run]].tolist()
            with _opened(out / shards[at]["file"]) as table:
                drops.report.append((name, "duplicate", f"of {table['file'][clip].as_py()}"))
    return drops


def _runs(out: Path, shards: Sequence[Mapping[str, Any]]) -> _Runs:
    """Read which clips are of one file; only names, digests and places are touched."""
    digests, places, files = [], [], []
    before: tuple[Any, ...] = ()
    last_start = 0.0
    count = 0
    for number, shard in enumerate(shards):
        if not shard["clips"]:
            continue
        with _opened(out / shard["file"]) as table:
            names = np.array(table["file"].to_pylist(), dtype=object)
            digest = table["digest"].to_pylist()
            starts = table["start_s"].to_numpy()
        begins = np.r_[True, (names[1:] != names[:-1]) | (starts[1:] <= starts[:-1])]
        firsts = np.flatnonzero(begins)
        goes_on = before == (names[0], digest[0]) and starts[0] > last_start
        numbers = np.arange(len(firsts)) + count - goes_on
        digests.append(np.frombuffer(b"".join(digest), np.uint64).reshape(-1, 2)[firsts])
        places.append(np.stack([np.full(len(firsts), number), firsts, np.r_[firsts[1:], len(names)]], axis=1))
        files.append(numbers)
        count = int(numbers[-1]) + 1
        before, last_start = (names[-1], digest[-1]), starts[-1]
    return _Runs(np.concatenate(digests), np.concatenate(places), np.concatenate(files))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a shard as a table, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        yield pa.ipc.open_file(source).read_all()


def _note(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Remove it; the same command makes it anew.") from error


def _nothing_left(source: str, skipped: Sequence[Skipped]) -> ValueError:
    counts = Counter(reason for _, reason, _ in skipped)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    name, reason, detail = skipped[0]
    return ValueError(
        f"{source} holds no usable audio: of {len(skipped)} files that look like it, {told} "
        f"(the first: {name}, {reason}: {detail})"
    )


def _readable(summary: Mapping[str, Any]) -> str:
    """Return JSON with a line for each field, and for each shard."""
    lines = []
    for key, value in summary.items():
        if isinstance(value, list):
            inside = ",\n".join("    " + json.dumps(one) for one in value)
            text = f"[\n{inside}\n  ]" if value else "[]"
        else:
            text = json.dumps(value)
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_report(path: Path, skipped: Iterable[Skipped]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    writer.writerows([printable(value) for value in row] for row in skipped)
    atomic_write_text(path, text.getvalue())


def _remove(out: Path, jobs: int, shards: Iterable[Mapping[str, Any]]) -> None:
    """Remove the notes, what an interrupted write left, and these shards."""
    for shard in shards:
        (out / shard["file"]).unlink(missing_ok=True)
    (out / PLAN_FILE).unlink(missing_ok=True)
    for index in range(jobs):
        facts_path(out, index).unlink(missing_ok=True)
    remove_leftovers(out)
