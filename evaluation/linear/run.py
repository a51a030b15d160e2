"""Linear evaluation of several sets: embeddings, layers and neighbors; a table and a JSON file."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hear_m2d.evaluation.linear.datasets import LabelledSet
from hear_m2d.evaluation.linear.embeddings import PART_CLIPS, Embedder, cache_key, part_path
from hear_m2d.evaluation.linear.probes import majority_of_set, neighbors_of_set, targets
from hear_m2d.evaluation.linear.protocol import LinearSettings, linear_evaluation
from hear_m2d.evaluation.linear.published import aligned, comparison
from hear_m2d.utils.files import write_json
from hear_m2d.utils.progress import ProgressBar


def run_linear(
    sets: Sequence[LabelledSet],
    embedder: Embedder,
    *,
    embed: Callable[[LabelledSet], NDArray[np.float32]],
    model: dict[str, Any],
    rate: float,
    seeds: Sequence[int],
    device: torch.device,
    out: Path | None = None,
    compare: bool = False,
) -> list[str]:
    """Evaluate sets one after another, and return the lines of the report.

    Args:
        sets: The labeled sets.
        embedder: The model.
        embed: Returns a set's embeddings.
        model: What the JSON says of the model; ``name`` is also the report's.
        rate: Learning rate.
        seeds: One run each.
        device: Where the layers are trained.
        out: JSON file, written after each set.
        compare: Add the published figures.
    """
    settings = LinearSettings(learning_rate=rate, seeds=tuple(seeds))
    results: dict[str, Any] = {
        "format": 1,
        "protocol": "linear",
        "model": {**model, "sample_rate": embedder.sample_rate, "features": embedder.size},
        "settings": asdict(settings),
        "environment": {
            "hear_m2d": version("hear-m2d"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": device.type,
        },
        "tasks": [],
    }
    rows = [("task", "metric", "score", "95 %", "kNN", "majority", "clips", "classes", "splits")]
    after: list[str] = []
    for labelled in sets:
        clock = time.perf_counter()
        x, y = embed(labelled), targets(labelled)
        embedded = time.perf_counter()
        with ProgressBar(total=layers(labelled, seeds), desc=f"{labelled.name} layers", unit="layer") as bar:
            result = linear_evaluation(x, labelled, settings, device=device, tick=bar.update)
        trained = time.perf_counter()
        knn, majority = neighbors_of_set(x, y, labelled), majority_of_set(y, labelled)
        notes = list(result.notes)
        if labelled.splits == "folds" and labelled.unit_s is not None:
            notes.append(f"clips longer than {labelled.unit_s} s are cut at their beginning")
        if labelled.splits == "ours":
            notes.append("neighbors: leave one out")
        results["tasks"].append(
            {
                **result.to_json(),
                "notes": notes,
                "knn": knn,
                "majority": majority,
                "clips": len(labelled.clips),
                "classes": len(labelled.classes),
                "splits": labelled.splits,
                "unit_s": labelled.unit_s,
                "published": labelled.published,
                "seconds": {"embedding": embedded - clock, "layers": trained - embedded},
            }
        )
        if out:
            write_json(out, results)
        interval = "-" if result.ci95 is None else f"±{result.ci95:.4f}"
        scores = (f"{result.score:.4f}", interval, f"{knn:.4f}", f"{majority:.4f}")
        sizes = (str(len(labelled.clips)), str(len(labelled.classes)), _splits(labelled))
        rows.append((labelled.name, result.metric, *scores, *sizes))
        after += [f"{labelled.name}: {note}" for note in notes]
        if compare:
            table = comparison("linear", labelled.published, model["name"], result.score, result.ci95)
            after += ["", f"{labelled.name}, linear evaluation, percent:", *table]
    head = (
        f"linear evaluation, rate {rate:g}, seeds {', '.join(map(str, seeds))}, 95 % interval by Student's t"
    )
    return [head, *aligned(rows), *after, *([f"written: {out}"] if out else [])]


def report_dry_run(
    sets: Sequence[LabelledSet], embedder: Embedder, *, cache: Path, rate: float, seeds: Sequence[int]
) -> list[str]:
    """Return the lines that say what :func:`run_linear` would compute."""
    lines = [f"rate {rate:g}, {embedder.size} features at {embedder.sample_rate} Hz, cache {cache}"]
    for labelled in sets:
        folder = cache / cache_key(embedder, labelled)
        parts = math.ceil(len(labelled.clips) / PART_CLIPS)
        done = sum(part_path(folder, index * PART_CLIPS).exists() for index in range(parts))
        size = len(labelled.clips) * embedder.size * 4 / 2**20
        unit = "whole clips" if labelled.unit_s is None else f"{labelled.unit_s:g} s"
        lines.append(
            f"{labelled.name}: {len(labelled.clips)} clips ({unit}), {len(labelled.classes)} classes, "
            f"{labelled.metric}, splits {_splits(labelled)}; embeddings {size:.1f} MiB, {done} of {parts} "
            f"parts exist; {layers(labelled, seeds)} layers to train"
        )
        lines += [f"{labelled.name}: {note}" for note in labelled.notes]
    return lines


def layers(labelled: LabelledSet, seeds: Sequence[int]) -> int:
    """Return how many layers an evaluation trains."""
    return len(seeds) * (len(labelled.folds) if labelled.splits == "folds" else 1)


def _splits(labelled: LabelledSet) -> str:
    if labelled.splits == "folds":
        return f"{len(labelled.folds)} folds"
    counts = Counter(clip.split for clip in labelled.clips)
    own = " (ours)" if labelled.splits == "ours" else ""
    return "/".join(str(counts[split]) for split in ("train", "valid", "test")) + own
