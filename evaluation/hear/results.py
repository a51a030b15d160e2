"""`results.json`: the output of the official harness in one strict JSON file.

No number is computed here that the official code did not print, except the mean and the standard
deviation over folds where it prints none. A number that is not finite becomes null and is named in the
task's ``error``; a task whose score is not finite, on all folds or on one, is not ``ok``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.archives.catalog import alteration, task_of_directory
from hear_m2d.evaluation.hear.settings import PUBLISHED_GRID
from hear_m2d.utils.commands import aligned

RAW = "test.predicted-scores.json"
EMBEDDED = ".done.embeddings"
PREDICTED = "prediction-done.json"
AGGREGATE = "aggregated_scores"
PREFIX = "test_"
NOT_METRICS = {"score", "loss"}  # the primary metric under another name, and the loss


def read_finished(
    folder: Path, *, out: Path, metric: str, measured: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read one finished task from the harness's own files.

    Args:
        folder: The task's folder of embeddings, in which the harness leaves its files.
        out: The folder of `results.json`; the path of the raw file is given relative to it.
        metric: The task's primary metric.
        measured: Times and memory, which only the task's process knows: fields of an earlier entry, or of its
            last event.

    Returns:
        One entry of ``tasks`` in `results.json`.
    """
    raw = json.loads((folder / RAW).read_text())
    folds = [name for name, value in raw.items() if isinstance(value, dict) and PREFIX + "score" in value]
    notes: list[str] = []
    entries = []
    for fold in folds:
        scores = _scores(raw[fold], f"of {fold}", notes)
        entries.append({"fold": fold, "score": _finite(raw[fold][PREFIX + "score"]), "scores": scores})
    entry = failed(folder.name, metric=metric, error="", measured=measured)
    if not folds:
        notes.append(f"the harness's file {RAW} has no fold with a score")
    elif len(folds) > 1:
        overall = raw.get(AGGREGATE) or _aggregate([raw[fold] for fold in folds])
        overall = {key.removesuffix("_mean"): value for key, value in overall.items()}
        scores = _scores(overall, "over the folds", notes)
        entry |= {"score": _finite(overall[f"{PREFIX}score"]), "scores": scores}
    else:
        entry |= {"score": entries[0]["score"], "scores": entries[0]["scores"]}
    bad = [fold["fold"] for fold in entries if fold["score"] is None]
    if bad:
        notes.insert(
            0, f"{metric} is not a number on {', '.join(bad)}; the harness's mean leaves such a fold out"
        )
    seconds = {
        "embedding": _number(folder / "profile.embeddings.json", "time_elapsed"),
        "prediction": _number(folder / PREDICTED, "time"),
    }
    return entry | {
        "status": "failed" if bad or entry["score"] is None else "ok",
        "error": "; ".join(notes) or None,
        "folds": entries,
        "seconds": entry["seconds"] | seconds,
        "raw": (folder / RAW).relative_to(out).as_posix(),
        **_alteration(folder),
    }


def failed(
    task: str, *, metric: str, error: str, measured: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the entry of a task that did not reach a score."""
    measured = measured or {}
    return {
        "task": task,
        "status": "failed",
        "error": error,
        "metric": metric,
        "score": None,
        "scores": {},
        "folds": [],
        "seconds": {"embedding": None, "prediction": None, "total": None, **measured.get("seconds", {})},
        "peak_memory_bytes": measured.get("peak_memory_bytes"),
        "stage_peak_memory_bytes": measured.get("stage_peak_memory_bytes"),
        "raw": None,
    }


def _alteration(folder: Path) -> dict[str, str]:
    """Return how a task differs from HEAR's task of that name, from the harness's copy of its metadata."""
    metadata = folder / "task_metadata.json"
    if task_of_directory(folder.name) is None or not metadata.is_file():
        return {}
    splits = json.loads(metadata.read_text())["splits"]
    clips = sum(len(json.loads((folder / f"{split}.json").read_text())) for split in splits)
    altered = alteration(folder.name, clips)
    return {"altered": altered} if altered else {}


def is_embedded(folder: Path) -> bool:
    """Return whether the embeddings runner finished here; if not, it starts again."""
    return (folder / EMBEDDED).is_file()


def is_finished(folder: Path) -> bool:
    """Return whether both official tools wrote their done files, and the scores exist."""
    return all((folder / name).is_file() for name in (EMBEDDED, PREDICTED, RAW))


def table(results: Mapping[str, Any]) -> str:
    """Return the table that `hear-m2d evaluate` prints: one line for each task."""
    rows = [("task", "metric", "score", "embedding", "prediction", "memory", "")]
    for task in results["tasks"]:
        spread = task["scores"].get(f"{task['metric']}_std")
        peak = task["peak_memory_bytes"]
        rows.append(
            (
                task["task"],
                task["metric"],
                "–" if task["score"] is None else _format(task["score"], spread),
                _seconds(task["seconds"]["embedding"]),
                _seconds(task["seconds"]["prediction"]),
                "–" if peak is None else f"{peak / 1e9:.2f} GB",
                "" if task["status"] == "ok" else "failed",
            )
        )
    return "\n".join([*aligned(rows), *filter(None, [grid_mark(results["harness"])])])


def grid_mark(harness: Mapping[str, Any]) -> str:
    """Return a sentence if the grid is not the published one, because such scores are not comparable."""
    grid = (harness["grid"], harness["grid_points"])
    if grid == PUBLISHED_GRID:
        return ""
    points = f"{grid[1]} point" + "s" * (grid[1] != 1)
    return f"NOT THE PUBLISHED GRID: `{grid[0]}` with {points}; published HEAR scores use `default` with 8"


def _scores(values: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, float | None]:
    """Return metrics by name; a value that is not finite becomes null and is recorded."""
    scores: dict[str, float | None] = {}
    for key, value in values.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or name.removesuffix("_std") in NOT_METRICS:
            continue
        scores[name] = _finite(value)
        if scores[name] is None:
            notes.append(f"{name} {where} is {_spell(value)}")
    return scores


def _aggregate(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Compute mean and sample deviation over folds, as the harness does where it prints them."""
    overall = {}
    for key in folds[0]:
        values = [fold[key] for fold in folds if key in fold and math.isfinite(fold[key])]
        overall[f"{key}_mean"] = statistics.fmean(values) if values else math.nan
        overall[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
    return overall


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _spell(value: Any) -> str:
    if not isinstance(value, float):
        return repr(value)
    return "not a number" if math.isnan(value) else ("infinite" if value > 0 else "minus infinity")


def _number(path: Path, key: str) -> float | None:
    try:
        return _finite(json.loads(path.read_text())[key])
    except (OSError, ValueError, KeyError):
        return None


def _format(score: float, spread: float | None) -> str:
    return f"{score:.4f}" if spread is None else f"{score:.4f} ± {spread:.4f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
