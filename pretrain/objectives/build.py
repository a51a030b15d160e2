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
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.utils.errors import InputError

# What a recipe trains, by where its offline target comes from: the kind of its checkpoint.
KINDS = {"": "m2d", "teacher": "m2d_x", "labels": "m2d_as", "features": "m2d_s"}


def build_objective(recipe: Recipe) -> Objective:
    """Return the recipe's objective with fresh weights, a function of its seed alone.

    Raises:
        InputError: An M2D-X whose ``offline.features`` are not known (``teacher.with_offline`` sets them).
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
            "batch_norm_target": recipe.batch_norm_target,
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
