"""Recipe → objective, and objective → the checkpoint that `hear_m2d.load_model` reads."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hear_m2d.model.config import ModelConfig
from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.m2d import M2D
from hear_m2d.pretrain.objectives.m2d_x import M2DX
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.pretrain.objectives.teacher import read_teacher, with_offline
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.utils.errors import InputError

# What a recipe trains, by where its offline target comes from: the kind of its checkpoint.
KINDS = {"": "m2d", "teacher": "m2d_x", "labels": "m2d_as", "features": "m2d_s"}


def build_objective(recipe: Recipe) -> Objective:
    """Return the recipe's objective with fresh weights, a function of its seed alone.

    Raises:
        ValueError: An M2D-X whose ``offline_features`` nobody filled in (``teacher.with_offline`` does).
    """
    common: dict[str, Any] = {"mask_ratio": recipe.mask_ratio, "norm_pix_loss": recipe.norm_pix_loss}
    sizes = recipe.encoder, recipe.decoder
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the GPUs' generators stay as they are
        if recipe.objective == "msm_mae":
            return MSMMAE(*sizes, **common)
        common |= {
            "loss": recipe.loss,
            "target_init": recipe.target_init,
            "target_input": recipe.target_input,
        }
        if not recipe.offline.source:
            return M2D(*sizes, **common)
        if not recipe.offline.features:
            raise InputError("offline.features = 0: the teacher or the data must say how many there are")
        return M2DX(
            *sizes,
            offline=recipe.offline.source,
            offline_features=recipe.offline.features,
            online_weight=recipe.offline.online_weight,
            offline_weight=recipe.offline.offline_weight,
            **common,
        )


def begin_objective(
    recipe: Recipe,
    *,
    mean: float,
    std: float,
    target_shape: tuple[int, ...] | None = None,
    resumed: bool = False,
) -> tuple[Recipe, Objective, list[str]]:
    """Return the recipe with its open fields filled in, its objective at the start of a run, and notes.

    The objective has fresh weights or those of ``init``, and its teacher, where it has one. The notes say
    for each part whether it comes from ``init``, is a copy or is new.

    Args:
        recipe: What to train.
        mean: Of the data.
        std: Of the data.
        target_shape: Of one item's ``target``; None where the data carries none.
        resumed: The weights will come from a saved state: ``init`` need not exist any more.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: ``init``, the teacher or the data's targets do not fit the recipe.
    """
    from hear_m2d.pretrain.training.warm_start import warm_start

    recipe, teacher = with_offline(recipe, mean=mean, std=std, target_shape=target_shape)
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe) if recipe.init and not resumed else []
    if isinstance(objective, M2DX):
        objective.teacher = teacher
    return recipe, objective, notes


def check_start(recipe: Recipe) -> None:
    """Refuse an initial checkpoint or a teacher that does not fit; the data need not exist yet.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: It does not fit, or the recipe needs a teacher and names none.
    """
    from hear_m2d.pretrain.training.warm_start import read_init

    if recipe.offline.source == "teacher":
        read_teacher(recipe)
    if recipe.init:
        read_init(recipe)


def hear_model(
    objective: Objective, recipe: Recipe, *, mean: float, std: float, training: dict[str, Any]
) -> HearModel:
    """Return the objective's encoder as a model, with the statistics that it was trained with."""
    with torch.device("meta"):
        model = HearModel(
            ModelConfig(
                kind=KINDS[recipe.offline.source] if recipe.objective == "m2d" else recipe.objective,
                encoder=recipe.encoder,
                frontend=recipe.frontend,
                mean=mean,
                std=std,
                training={"recipe": _without_folders(recipe), "hear_m2d": version("hear-m2d"), **training},
            )
        )
    model.encoder.load_state_dict(objective.encoder.state_dict(), assign=True)
    model.frontend = LogMelSpectrogram(model.config.frontend)  # not on the meta device
    return model.eval()


def _without_folders(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields for a file that may be shared: paths keep only the file and its folder."""
    fields = recipe.to_json()
    for table, name in (fields, "init"), (fields["offline"], "teacher"):
        if "://" not in table[name]:
            table[name] = "/".join(Path(table[name]).parts[-2:])
    return fields
