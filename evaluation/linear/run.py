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

from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.embeddings import PART_CLIPS, Embedder, cache_key, part_path
from hear_m2d.evaluation.linear.probes import majority_of_set, neighbors_of_set, targets
from hear_m2d.evaluation.linear.protocol import LinearSettings, linear_evaluation
from hear_m2d.evaluation.linear.published import comparison
from hear_m2d.utils.commands import aligned
from hear_m2d.utils.files import write_json
from hear_m2d.utils.progress import ProgressBar


def run_linear(
    sets: Sequence[LabeledSet],
    embedder: Embedder,
    *,
    embed: Callable[[LabeledSet], NDArray[np.float32]],
    model: dict[str, Any],
    rate: float,
    seeds: Sequence[int],
    device: torch.device,
    out: Path | None = None,
    compare: bool = False,
    changes: Sequence[str] = (),
) -> list[str]:
    """Evaluate sets one after another, and return the lines of the report.

    Args:
        sets: The labeled sets.
        embedder: The model.
        embed: Returns a set's embeddings.
        model: Description of the model for the JSON; ``name`` is also used in the report.
        rate: Learning rate.
        seeds: One run each.
        device: Where the layers are trained.
        out: JSON file, written after each set.
        compare: Add the published figures.
        changes: Settings that are not the published ones, in words.
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
    for labeled in sets:
        clock = time.perf_counter()
        x, y = embed(labeled), targets(labeled)
        embedded = time.perf_counter()
        with ProgressBar(total=layers(labeled, seeds), desc=f"{labeled.name} layers", unit="layer") as bar:
            result = linear_evaluation(x, labeled, settings, device=device, tick=bar.update)
        trained = time.perf_counter()
        knn, majority = neighbors_of_set(x, y, labeled), majority_of_set(y, labeled)
        notes = list(result.notes)
        if labeled.splits == "folds" and labeled.unit_s is not None:
            notes.append(f"clips longer than {labeled.unit_s} s are cut at their beginning")
        if labeled.splits == "ours":
            notes.append("neighbors: leave one out")
        results["tasks"].append(
            {
                **result.to_json(),
                "notes": notes,
                "knn": knn,
                "majority": majority,
                "clips": len(labeled.clips),
                "classes": len(labeled.classes),
                "splits": labeled.splits,
                "unit_s": labeled.unit_s,
                "published": labeled.published,
                "seconds": {"embedding": embedded - clock, "layers": trained - embedded},
            }
        )
        if out:
            write_json(out, results)
        interval = "-" if result.ci95 is None else f"±{result.ci95:.4f}"
        scores = (f"{result.score:.4f}", interval, f"{knn:.4f}", f"{majority:.4f}")
        sizes = (str(len(labeled.clips)), str(len(labeled.classes)), _splits(labeled))
        rows.append((labeled.name, result.metric, *scores, *sizes))
        after += [f"{labeled.name}: {note}" for note in notes]
        if compare:
            table = comparison(
                "linear",
                labeled.published,
                model["name"],
                result.score,
                result.ci95,
                changes=[*labeled.notes, *changes],
            )
            after += ["", f"{labeled.name}, linear evaluation, percent:", *table]
    head = (
        f"linear evaluation, rate {rate:g}, seeds {', '.join(map(str, seeds))}, 95 % interval by Student's t"
    )
    return [head, *aligned(rows), *after, *([f"written: {out}"] if out else [])]


def report_dry_run(
    sets: Sequence[LabeledSet], embedder: Embedder, *, cache: Path, rate: float, seeds: Sequence[int]
) -> list[str]:
    """Return lines that describe what :func:`run_linear` would compute."""
    lines = [f"rate {rate:g}, {embedder.size} features at {embedder.sample_rate} Hz, cache {cache}"]
    for labeled in sets:
        folder = cache / cache_key(embedder, labeled)
        parts = math.ceil(len(labeled.clips) / PART_CLIPS)
        done = sum(part_path(folder, index * PART_CLIPS).exists() for index in range(parts))
        size = len(labeled.clips) * embedder.size * 4 / 2**20
        unit = "whole clips" if labeled.unit_s is None else f"{labeled.unit_s:g} s"
        lines.append(
            f"{labeled.name}: {len(labeled.clips)} clips ({unit}), {len(labeled.classes)} classes, "
            f"{labeled.metric}, splits {_splits(labeled)}; embeddings {size:.1f} MiB, {done} of {parts} "
            f"parts exist; {layers(labeled, seeds)} layers to train"
        )
        lines += [f"{labeled.name}: {note}" for note in labeled.notes]
    return lines


def layers(labeled: LabeledSet, seeds: Sequence[int]) -> int:
    """Return how many layers an evaluation trains."""
    return len(seeds) * (len(labeled.folds) if labeled.splits == "folds" else 1)


def _splits(labeled: LabeledSet) -> str:
    if labeled.splits == "folds":
        return f"{len(labeled.folds)} folds"
    counts = Counter(clip.split for clip in labeled.clips)
    own = " (ours)" if labeled.splits == "ours" else ""
    return "/".join(str(counts[split]) for split in ("train", "valid", "test")) + own
