"""The cost of each recipe: the tables of docs/recipes.md.

python benchmarks/recipes.py

Hours come from operations, a matrix rate and an assumed share of it: nothing is measured here.
"""

from __future__ import annotations

import dataclasses

import torch

from hear_m2d.pretrain.recipe import Recipe, load_recipe, replace_fields, shipped_recipes
from hear_m2d.pretrain.training.estimate import ASSUMED_SHARE, Plan, make_plan

GPU_RATE = 700e12  # bfloat16 products on one H100 SXM, operations per second; its data sheet says 989e12
CPU_RATE = 207e9  # float32 products on the two cores of docs/performance.md
AT_ONCE = 256  # clips in memory
PUBLISHED = """\
| recipe | besides `--data` and `--out` | it reproduces | published hardware and time | published scores \
| steps | GFLOP a clip | one GPU: hours | GiB |
|---|---|---|---|---|---|---|---|---|"""
OURS = """\
| recipe | what it is for | steps | GFLOP a clip | two CPU cores: hours | GiB |
|---|---|---|---|---|---|"""


def plan_of(recipe: Recipe, precision: str) -> Plan:
    """Return the cost of a recipe; a teacher is assumed to have the student's sizes, as published."""
    recipe = dataclasses.replace(recipe, precision=precision)
    if recipe.offline.source == "labels":
        recipe = replace_fields(recipe, {"offline.features": 527})  # AudioSet's
    return make_plan(recipe, device=torch.device("cpu"), teacher=recipe.encoder)


def options(recipe: Recipe) -> str:
    """Return what the command needs besides ``--data`` and ``--out``."""
    words = ["--init CHECKPOINT"] if recipe.offline.source == "teacher" else []
    words += ["--features FOLDER"] if recipe.offline.source == "features" else []
    words += ["--noise FOLDER"] if recipe.noise_ratio else []
    return (
        f"`{' '.join(words)}`" if words else "labels in the data" if recipe.offline.source == "labels" else ""
    )


def costs(recipe: Recipe, plan: Plan, rate: float) -> list[str]:
    """Return steps, operations, hours and memory."""
    hours = plan.hours(rate, recipe.batch_size)
    gib = (plan.state_bytes + min(AT_ONCE, recipe.batch_size) * plan.clip_bytes) / 2**30
    steps = "" if plan.steps is None else f"{plan.steps:,}"
    return [
        steps,
        f"{plan.operations / 1e9:.1f}",
        "" if hours is None else f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}",
        f"{gib:.1f}",
    ]


def published_row(name: str) -> str:
    """Return the row of a published recipe."""
    recipe = load_recipe(name)
    description_cells = [
        options(recipe),
        recipe.published.reproduces,
        recipe.published.hours,
        recipe.published.scores,
    ]
    plan = plan_of(recipe, "bfloat16")
    return line([f"`{name}`", *description_cells, *costs(recipe, plan, GPU_RATE * ASSUMED_SHARE["cuda"])])


def own_row(name: str) -> str:
    """Return the row of one of our own recipes."""
    recipe = load_recipe(name)
    plan = plan_of(recipe, "float32")
    return line([f"`{name}`", recipe.description, *costs(recipe, plan, CPU_RATE * ASSUMED_SHARE["cpu"])])


def line(cells: list[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cell or "–" for cell in cells) + " |"


def tables() -> tuple[str, str]:
    """Return both tables: the authors' recipes, and ours."""
    names = {name: bool(load_recipe(name).published.clips) for name in shipped_recipes()}
    return (
        "\n".join([PUBLISHED, *(published_row(name) for name in names if names[name])]),
        "\n".join([OURS, *(own_row(name) for name in names if not names[name])]),
    )


if __name__ == "__main__":
    print("\n\n".join(tables()))
