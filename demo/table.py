"""One table from several ``results.json``: task, metric, one column per model, and chance level."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.utils.commands import aligned

MODELS = {
    "default": "default model",
    "untrained": "untrained",
    "m2d": "M2D, a minute",
    "msm_mae": "MSM-MAE, a minute",
}
SMALLER_IS_BETTER = ("segment_1s_er",)
ABOUT = {
    "mAP": "mean average precision",
    "top1_acc": "share of clips named correctly",
    "aucroc": "area under the ROC curve",
    "event_onset_200ms_fms": "F-measure of onsets found to within 200 ms",
    "segment_1s_er": "error rate over one-second segments; smaller is better",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        task: The task's folder name.
        metric: HEAR's name of the metric.
        primary: Whether it is the task's primary metric.
        scores: One per model; None if there is none.
        chance: Score of guessing, if known.
    """

    task: str
    metric: str
    primary: bool
    scores: tuple[float | None, ...]
    chance: float | None

    @property
    def best(self) -> tuple[bool, ...]:
        """Return for each score whether it is the best of the row."""
        known = [score for score in self.scores if score is not None]
        if not known:
            return (False,) * len(self.scores)
        top = min(known) if self.metric in SMALLER_IS_BETTER else max(known)
        return tuple(score == top for score in self.scores)


def read_results(eval_dir: Path) -> dict[str, dict[str, Any]]:
    """Read the models' ``results.json`` below the folder of evaluations."""
    return {name: json.loads((eval_dir / name / "results.json").read_text()) for name in MODELS}


def rows(results: Mapping[str, Mapping[str, Any]], tasks_dir: Path) -> list[Row]:
    """Return the lines: each task's primary metric, then its others."""
    by_model = {name: {task["task"]: task for task in found["tasks"]} for name, found in results.items()}
    table = []
    for task in dict.fromkeys(task for tasks in by_model.values() for task in tasks):
        entries = [by_model[name].get(task, {}) for name in MODELS]
        primary = next(str(entry["metric"]) for entry in entries if entry)
        for metric in _metrics(primary, entries):
            scores = tuple(entry.get("scores", {}).get(metric) for entry in entries)
            guess = chance(metric, tasks_dir / task)
            table.append(Row(task, metric, metric == primary, scores, guess))
    return table


def _metrics(primary: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the metrics, the primary one first, without deviations and parts of other metrics."""
    found = dict.fromkeys([primary, *(name for entry in entries for name in entry.get("scores", {}))])
    return [name for name in found if not any(name.startswith(f"{other}_") for other in found)]


def chance(metric: str, task_dir: Path) -> float | None:
    """Return the score of guessing, from the class frequencies; None if there is no simple formula."""
    if metric == "aucroc":
        return 0.5
    if metric not in ("mAP", "top1_acc"):
        return None
    shares = class_shares(task_dir)
    if not shares:
        return None
    return sum(shares.values()) / len(shares) if metric == "mAP" else max(shares.values())


def class_shares(task_dir: Path) -> dict[str, float]:
    """Return each class's share of the clips that are tested."""
    files = [task_dir / "test.json"] if (task_dir / "test.json").exists() else task_dir.glob("fold*.json")
    clips: list[Sequence[Any]] = [
        labels for file in files for labels in json.loads(file.read_text()).values()
    ]
    if not clips or not (task_dir / "labelvocabulary.csv").exists():
        return {}
    with (task_dir / "labelvocabulary.csv").open(newline="") as file:
        names = [row["label"] for row in csv.DictReader(file)]
    return {name: sum(name in map(str, labels) for labels in clips) / len(clips) for name in names}


def text(table: Sequence[Row]) -> str:
    """Return the table for a terminal, the best of each row with a star."""
    lines = [("task", "metric", *MODELS.values(), "chance")]
    for row in table:
        marks = ("*" if best else " " for best in row.best)
        cells = (number(score) + mark for score, mark in zip(row.scores, marks, strict=True))
        lines.append((row.task if row.primary else "", row.metric, *cells, number(row.chance)))
    return "\n".join(aligned(lines))


def number(score: float | None) -> str:
    """Format a score; a dash if there is none."""
    return "–" if score is None else f"{score:.3f}"


def problems(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each task without a score, and for each task that only other models have."""
    known = sorted({task["task"] for found in results.values() for task in found["tasks"]})
    sentences = []
    for name, found in results.items():
        entries = {task["task"]: task for task in found["tasks"]}
        for task in known:
            entry = entries.get(task, {"status": "absent", "error": "it was not run"})
            if entry["status"] != "ok":
                sentences.append(f"{MODELS[name]}, {task}: {entry.get('error') or 'no reason given'}")
    return sentences
