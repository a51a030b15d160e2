"""The end of `hear-m2d prepare`: sum the shards' notes, and replace them by ``data.json``."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.model.frontend import FrontendConfig, mel_filters
from hear_m2d.pretrain.data.prepared import DATA_FILE, PLAN_FILE
from hear_m2d.pretrain.data.shards import LOUD_PEAK, MAX_CLASSES, note_path
from hear_m2d.pretrain.data.sources.base import Skipped
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text, printable, remove_leftovers
from hear_m2d.utils.version import installed_version

logger = logging.getLogger(__name__)

REPORT_FILE = "skipped.csv"


def finalize(out: Path, plan: Mapping[str, Any], problems: Sequence[Skipped] = ()) -> dict[str, Any]:
    """Sum the shards' notes, and replace them by ``data.json``.

    Args:
        out: The folder; every shard of the plan is there.
        plan: The content of ``plan.json``.
        problems: Files and folders that could not be listed.

    Returns:
        What ``data.json`` says.

    Raises:
        InputError: No clip is left; the folder is then emptied.
    """
    notes = [_read_note(note_path(out, index)) for index in range(plan["jobs"])]
    skipped = [*problems, *(tuple(entry) for note in notes for entry in note["skipped"])]
    shards = [shard for note in notes for shard in note["shards"]]
    lengths = sum((Counter(dict(note["lengths"])) for note in notes), Counter())
    # Notes of an earlier version, in a folder that this one finishes, lack rates and loud files.
    rates = sum((Counter(dict(note.get("rates", ()))) for note in notes), Counter())
    loud = [tuple(entry) for note in notes for entry in note.get("loud", ())]
    labels = set().union(*(note["labels"] for note in notes))
    clips = sum(shard["clips"] for shard in shards)
    if not clips:
        _remove_notes(out, plan["jobs"])
        for shard in shards:
            (out / shard["file"]).unlink(missing_ok=True)
        (out / ".lock").unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()
        raise _nothing_left(plan["source"]["name"], skipped)
    frontend = FrontendConfig(**plan["frontend"])
    frames = sum(note["frames"] for note in notes)
    values = frames * frontend.n_mels
    mean = math.fsum(note["sum"] for note in notes) / values
    squares = math.fsum(note["squares"] for note in notes)
    summary = {
        **plan,
        "version": installed_version(),
        "clips": clips,
        "frames": frames,
        "hours": sum(note["samples"] for note in notes) / frontend.sample_rate / 3600,
        "mean": mean,
        "std": math.sqrt(squares / values - mean**2),
        "skipped": dict(sorted(Counter(reason for _, reason, _ in skipped).items())),
        "loud": len(loud),
        "rates": sorted(rates.items()),
        "lengths": sorted(lengths.items()),
        "labels": sorted(labels) if len(labels) <= MAX_CLASSES else [],
        "shards": shards,
    }
    for warning in _warnings(frontend, rates, loud):
        logger.warning(warning)
    _write_report(out / REPORT_FILE, skipped)
    atomic_write_text(out / DATA_FILE, _readable(summary))
    _remove_notes(out, plan["jobs"])
    return summary


def _warnings(
    frontend: FrontendConfig, rates: Mapping[int, int], loud: Sequence[tuple[str, float]]
) -> Iterable[str]:
    """Yield a warning for each kind of suspicious files that were kept."""
    filters = mel_filters(frontend)  # (mels, frequencies)
    for rate, files in sorted(rates.items()):
        heard = math.ceil(
            rate / 2 * frontend.n_fft / frontend.sample_rate
        )  # frequencies below half of the rate
        empty = int((filters[:, :heard].sum(1) == 0).sum())
        if empty:
            yield (
                f"{files} of {sum(rates.values())} files have a sample rate of {rate} Hz: {empty} of the "
                f"{frontend.n_mels} mel bins at {frontend.sample_rate} Hz are empty for them"
            )
    if loud:
        name, peak = loud[0]
        yield (
            f"{len(loud)} files have samples beyond {LOUD_PEAK:g} and are kept (the first: "
            f"{printable(name)}, {peak:.6g}): they look like integers stored as float; divide them by 32768"
        )


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Remove it; the same command makes it again") from error


def _nothing_left(source: str, skipped: Sequence[Skipped]) -> InputError:
    counts = Counter(reason for _, reason, _ in skipped)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    name, reason, detail = skipped[0]
    return InputError(
        f"{source} holds no usable audio: of {len(skipped)} files that look like it, {listed} "
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


def _remove_notes(out: Path, jobs: int) -> None:
    """Remove the notes, the plan, the locks of jobs, and what an interrupted write left."""
    (out / PLAN_FILE).unlink(missing_ok=True)
    for index in range(jobs):
        note_path(out, index).unlink(missing_ok=True)
    for path in out.glob(".job-*.lock"):
        path.unlink()
    remove_leftovers(out)
