"""Published figures of linear evaluation and fine-tuning, for comparison with measured ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from hear_m2d.utils.commands import aligned

NO_FIGURES = "no published figures"


@dataclass(frozen=True)
class Published:
    """One figure of a paper's table.

    Attributes:
        model: As the table calls it.
        task: Data set: ``esc50``, ``us8k``, …
        metric: ``acc_percent`` or ``mAP_percent``.
        score: In percent.
        ci: Half width of the printed 95 % interval; None where none is printed.
        source: The table.
    """

    model: str
    task: str
    metric: str
    score: float
    ci: float | None
    source: str


def published(protocol: Literal["linear", "finetune"], task: str) -> list[Published]:
    """Return a task's published figures, the best first.

    Args:
        protocol: Frozen embeddings or fine-tuning.
        task: Data set.
    """
    text = files(__package__).joinpath("published", f"{protocol}.csv").read_text(encoding="utf-8")
    rows = [
        Published(
            row["model"],
            row["task"],
            row["metric"],
            float(row["score"]),
            float(row["ci"]) if row["ci"] else None,
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
        if row["task"] == task
    ]
    return sorted(rows, key=lambda row: -row.score)


def comparison(
    protocol: Literal["linear", "finetune"],
    task: str,
    name: str,
    score: float,
    ci: float | None,
    *,
    changes: Sequence[str] = (),
) -> list[str]:
    """Return the lines of a table: the measured score among the published figures of its data set.

    Args:
        protocol: Frozen embeddings or fine-tuning.
        task: Data set; empty for one that no paper reports.
        name: Of the measured model.
        score: Measured, between 0 and 1.
        ci: Half width of its interval, between 0 and 1.
        changes: What differs from the published data and settings; the measured score is then marked †.
    """
    rows = published(protocol, task)
    if not rows:
        return [NO_FIGURES]
    own = Published(
        f"> {name}{' †' if changes else ''}",
        task,
        "",
        100 * score,
        None if ci is None else 100 * ci,
        "measured here",
    )
    table = sorted([*rows, own], key=lambda row: -row.score)
    sources = {
        source: f"[{index}]" for index, source in enumerate(dict.fromkeys(row.source for row in rows), 1)
    }
    lines = [
        (
            row.model,
            f"{row.score:.1f}",
            "" if row.ci is None else f"± {row.ci:.1f}",
            sources.get(row.source, ""),
        )
        for row in table
    ]
    remarks = [f"† not comparable: {'; '.join(changes)}"] if changes else []
    return [*aligned(lines), *remarks, *(f"{mark} {source}" for source, mark in sources.items())]
