"""The report of fine-tuning: means over folds, then over seeds, of the last and of the best epoch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hear_m2d.evaluation.finetune.recipe import FinetuneRecipe, read_recipe, recipe_names
from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.probes import majority_of_set, targets
from hear_m2d.evaluation.linear.protocol import half_interval
from hear_m2d.evaluation.linear.published import comparison

SEEDS = [43, 44, 45]  # the seeds of the published figures
ON_TEST = (
    "the best epoch was chosen on the test split, as in the published figures of sets without a validation "
    "split: that score is optimistic; the last epoch's is not"
)


def summary(
    runs: Sequence[dict[str, Any]],
    labeled: LabeledSet,
    *,
    recipe: str,
    settings: FinetuneRecipe,
    model: str,
) -> dict[str, Any]:
    """Return the JSON object of all runs.

    Args:
        runs: What :func:`~hear_m2d.evaluation.finetune.train.finetune_run` returned.
        labeled: The set.
        recipe: Its recipe's name.
        settings: The recipe.
        model: Description of the fine-tuned model.
    """
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    scores: dict[str, Any] = {}
    for which in ("last", "best"):
        means = [
            float(np.mean([run[which]["score"] for run in runs if run["seed"] == seed])) for seed in seeds
        ]
        scores[which] = {"score": float(np.mean(means)), "ci95": half_interval(means), "seeds": means}
    selected_on = runs[0]["selected_on"]
    folds = list(dict.fromkeys(run["fold"] for run in runs))
    notes = list(labeled.notes)
    if labeled.splits == "folds" and len(folds) < len(labeled.folds):
        notes.append(f"{len(folds)} of {len(labeled.folds)} folds: {', '.join(folds)}")
    published = labeled.published or (recipe if recipe in ("as2m", "as20k") else "")
    return {
        "format": 1,
        "protocol": "finetune",
        "task": labeled.name,
        "published": published,
        "changes": [*notes, *_changes(published, recipe, settings, seeds)],
        "metric": labeled.metric,
        **scores,
        "majority": majority_of_set(targets(labeled), labeled),
        "selected_on": selected_on,
        "seeds": seeds,
        "model": {"name": Path(model).stem, "model": model},
        "recipe": {"name": recipe, **settings.to_json()},
        "environment": {"hear_m2d": version("hear-m2d"), "torch": torch.__version__},
        "notes": [*notes, *([ON_TEST] if selected_on == "test" else [])],
        "runs": list(runs),
    }


def report(results: dict[str, Any], *, compare: bool = False) -> list[str]:
    """Return the lines that the command prints.

    Args:
        results: From :func:`summary`.
        compare: Add the published figures.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [f"{results['task']}, recipe {results['recipe']['name']}, seeds {seeds}"]
    for which in ("last", "best"):
        interval = results[which]["ci95"]
        text = "" if interval is None else f" ±{interval:.4f} (95 %, Student's t)"
        lines.append(f"{which} epoch: test {results['metric']} {results[which]['score']:.4f}{text}")
    lines.append(f"the majority class alone: {results['majority']:.4f}")
    if results["selected_on"] == "valid":
        lines.append("the best epoch was chosen on the valid split")
    lines += results["notes"]
    if compare:
        best = results["best"]
        lines.append("fine-tuning, percent (best epoch):")
        lines += comparison(
            "finetune",
            results["published"],
            results["model"]["name"],
            best["score"],
            best["ci95"],
            changes=results["changes"],
        )
    return lines


def _changes(published: str, recipe: str, settings: FinetuneRecipe, seeds: list[int]) -> list[str]:
    """Return what differs from the published recipe of a data set, in words."""
    if published not in recipe_names():
        return []
    known = read_recipe(published).to_json()
    fields = [
        f"{name}={value}"
        for name, value in settings.to_json().items()
        if name != "description" and value != known[name]
    ]
    changes = [f"recipe {recipe}"] if fields and recipe != published else []
    return [*changes, *fields, *([f"seeds {', '.join(map(str, seeds))}"] if seeds != SEEDS else [])]
