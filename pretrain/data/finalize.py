"""The end of `hear-m2d prepare`: sum the shards' statistics, and replace their files by ``data.json``."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.model.frontend import FrontendConfig, mel_filters
from hear_m2d.pretrain.data.prepared import DATA_FILE, PLAN_FILE
from hear_m2d.pretrain.data.shards import LOUD_PEAK, MAX_CLASSES, statistics_path
from hear_m2d.pretrain.data.sources.base import Skipped
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text, printable, read_json, remove_leftovers, write_json
from hear_m2d.utils.version import installed_version

logger = logging.getLogger(__name__)

REPORT_FILE = "skipped.csv"


def finalize(out: Path, plan: Mapping[str, Any], problems: Sequence[Skipped] = ()) -> dict[str, Any]:
    """Sum the statistics of the plan's shards, replace their files by ``data.json``, and return its content.

    Raises:
        InputError: No clip is left; the folder is then emptied.
    """
    paths = [statistics_path(out, index) for index in range(plan["jobs"])]
    parts = [read_json(path, hint="Remove it; the same command makes it again") for path in paths]
    skipped = [*problems, *(tuple(entry) for part in parts for entry in part["skipped"])]
    shards = [shard for part in parts for shard in part["shards"]]
    rates = sum((Counter(dict(part["rates"])) for part in parts), Counter())
    lengths = sum((Counter(dict(part["lengths"])) for part in parts), Counter())
    loud = [tuple(entry) for part in parts for entry in part["loud"]]
    labels = set().union(*(part["labels"] for part in parts))
    clips = sum(shard["clips"] for shard in shards)
    if not clips:
        _remove_temporary(out, paths)
        for shard in shards:
            (out / shard["file"]).unlink(missing_ok=True)
        (out / ".lock").unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()
        raise _nothing_left(plan["source"]["name"], skipped)
    frontend = FrontendConfig(**plan["frontend"])
    frames = sum(part["frames"] for part in parts)
    values = frames * frontend.n_mels
    mean = math.fsum(part["sum"] for part in parts) / values
    squares = math.fsum(part["squares"] for part in parts)
    summary = {
        **plan,
        "version": installed_version(),
        "clips": clips,
        "frames": frames,
        "hours": sum(part["samples"] for part in parts) / frontend.sample_rate / 3600,
        "mean": mean,
        "std": math.sqrt(squares / values - mean**2),
        "skipped": dict(sorted(Counter(reason for _, reason, _ in skipped).items())),
        "loud": len(loud),
        "rates": sorted(rates.items()),
        "lengths": sorted(lengths.items()),
        "labels": sorted(labels) if len(labels) <= MAX_CLASSES else [],
        "shards": shards,
    }
    _warn(frontend, rates, loud)
    report = io.StringIO()
    writer = csv.writer(report, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    writer.writerows([printable(value) for value in row] for row in skipped)
    atomic_write_text(out / REPORT_FILE, report.getvalue())
    write_json(out / DATA_FILE, summary)
    _remove_temporary(out, paths)
    return summary


def _warn(frontend: FrontendConfig, rates: Mapping[int, int], loud: Sequence[tuple[str, float]]) -> None:
    """Warn of each kind of suspicious files that were kept."""
    filters = mel_filters(frontend)  # (mels, frequencies)
    for rate, files in sorted(rates.items()):
        below = math.ceil(rate / 2 * frontend.n_fft / frontend.sample_rate)  # frequencies below half of it
        empty = int((filters[:, :below].sum(1) == 0).sum())
        if empty:
            logger.warning(
                "%d of %d files have a sample rate of %d Hz: %d of the %d mel bins at %d Hz are empty for "
                "them",
                files, sum(rates.values()), rate, empty, frontend.n_mels, frontend.sample_rate,
            )  # fmt: skip
    if loud:
        logger.warning(
            "%d files have samples beyond %g and are kept (the first: %s, %.6g): they look like integers "
            "stored as float; divide them by 32768",
            len(loud), LOUD_PEAK, printable(loud[0][0]), loud[0][1],
        )  # fmt: skip


def _nothing_left(source: str, skipped: Sequence[Skipped]) -> InputError:
    counts = Counter(reason for _, reason, _ in skipped)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    name, reason, detail = skipped[0]
    return InputError(
        f"{source} holds no usable audio: of {len(skipped)} files that look like it, {listed} "
        f"(the first: {name}, {reason}: {detail})"
    )


def _remove_temporary(out: Path, paths: Iterable[Path]) -> None:
    """Remove the statistics, the plan, the locks of jobs, and what an interrupted write left."""
    for path in [out / PLAN_FILE, *paths, *out.glob(".job-*.lock")]:
        path.unlink(missing_ok=True)
    remove_leftovers(out)
