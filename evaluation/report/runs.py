"""Read the `results.json` of evaluations."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hear_m2d.evaluation.hear.settings import PUBLISHED_GRID
from hear_m2d.utils.errors import InputError

RESULTS = "results.json"
HINT = "give the --out folder of `hear-m2d evaluate`"


@dataclass(frozen=True)
class TaskScore:
    """One task of a run."""

    folder: str
    metric: str
    score: float | None
    """Mean over the folds, as the harness prints it; None where there is none."""
    spread: float | None
    """Standard deviation over the folds; None for a task without folds."""
    folds: tuple[float, ...]
    error: str
    altered: str
    """Differences from the published task; empty if none is known."""
    seconds: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Run:
    """One `results.json`."""

    name: str
    path: Path
    model: Mapping[str, Any]
    harness: Mapping[str, Any]
    environment: Mapping[str, Any]
    tasks: tuple[TaskScore, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """Return how the harness's settings differ from those of the published scores."""
        grid, points = self.harness["grid"], self.harness["grid_points"]
        marks = [] if grid == PUBLISHED_GRID[0] else [f"grid {grid!r}"]
        if points != PUBLISHED_GRID[1]:
            marks.append(f"grid points: {points}, not {PUBLISHED_GRID[1]}")
        return tuple(marks)


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read runs, each given as a `results.json`, a folder that holds one, or `NAME=` before either.

    Raises:
        InputError: If something is not a `results.json`, or two runs have one name.
    """
    runs = [_read_run(argument) for argument in arguments]
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            paths = " and ".join(str(run.path) for run in runs if run.name == name)
            raise InputError(
                f"{count} runs are named {name!r}: {paths}. Give them names: NAME={runs[0].path}"
            )
    return runs


def _read_run(argument: str) -> Run:
    name, equals, rest = argument.partition("=")
    if not equals or Path(argument).exists():
        name, rest = "", argument
    path = Path(rest)
    if path.is_dir():
        path /= RESULTS
        if not path.is_file():
            raise InputError(f"{path.parent} holds no {RESULTS}: {HINT}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (UTF-8): {HINT}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a {RESULTS} of `hear-m2d evaluate`: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a JSON object: {HINT}")
    try:
        return _parse(content, name, path)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "a field has a wrong type"
        raise InputError(f"{path} is not a {RESULTS} of `hear-m2d evaluate`: {reason}") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise InputError(f"it holds {constant}, where a score that is not a number must be null")


def _parse(content: Any, name: str, path: Path) -> Run:
    if content["format"] != 1:
        raise InputError(f"{path} has the format {content['format']!r}; this version reads format 1")
    harness = {key: content["harness"][key] for key in ("grid", "grid_points")} | content["harness"]
    return Run(
        name=name or str(content["model"]["name"]),
        path=path,
        model=dict(content["model"]),
        harness=harness,
        environment=dict(content["environment"]),
        tasks=tuple(_parse_task(task) for task in content["tasks"]),
    )


def _parse_task(task: Mapping[str, Any]) -> TaskScore:
    score = None if task["status"] != "ok" or task["score"] is None else float(task["score"])
    folds = tuple(float(fold["score"]) for fold in task["folds"] if fold["score"] is not None)
    spread = task["scores"].get(f"{task['metric']}_std")
    if spread is None and len(folds) > 1:
        spread = statistics.stdev(folds)
    stages = [task["seconds"].get(stage) for stage in ("embedding", "prediction")]
    seconds = [value for value in stages if value is not None]  # `total` is both stages and the imports
    return TaskScore(
        folder=str(task["task"]),
        metric=str(task["metric"]),
        score=score,
        spread=None if spread is None else float(spread),
        folds=folds if len(folds) > 1 else (),
        error=str(task["error"] or ("" if score is not None else "no score")),
        altered=str(task.get("altered") or ""),
        seconds=sum(seconds) if seconds else None,
        peak_memory_bytes=task.get("peak_memory_bytes"),
    )
