"""Made `results.json` files for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import pytest


def task(
    folder: str, score: float | None, metric: str = "top1_acc", folds=(), **changes: Any
) -> dict[str, Any]:
    """One entry of `tasks`, as `hear-m2d evaluate` writes it."""
    return {
        "task": folder,
        "status": "failed" if score is None else "ok",
        "error": "RuntimeError: it broke" if score is None else None,
        "metric": metric,
        "score": score,
        "scores": {metric: score},
        "folds": [{"fold": f"fold{i:02d}", "score": value, "scores": {}} for i, value in enumerate(folds)],
        "seconds": {"embedding": 2.0, "prediction": 10.5, "total": 20.0},
        "peak_memory_bytes": 700 * 2**20,
        "raw": "raw.json",
    } | changes


def results(name: str, tasks: list[dict[str, Any]], grid: str = "default", points: int = 8) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {
            "name": name,
            "module": "m",
            "path": "m.pt",
            "sha256": "ab12",
            "config": None,
            "options": {},
        },
        "harness": {"heareval": "2021.1.3", "hearvalidator": "2021.0.6", "grid": grid, "grid_points": points},
        "environment": {"python": "3.11", "torch": "2", "platform": "Linux", "device": "cpu", "threads": 1},
        "tasks": tasks,
    }


@pytest.fixture
def write_run(tmp_path):
    """Write a `results.json` and return its folder; `tasks` are arguments of `task`."""

    def write(name: str, *tasks: Any, **settings: Any) -> Path:
        entries = [entry if isinstance(entry, dict) else task(*entry) for entry in tasks]
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results(name, entries, **settings)))
        return folder

    write.task = task
    return write
