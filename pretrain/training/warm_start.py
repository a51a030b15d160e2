"""Start a new run from a checkpoint, the `init` of a recipe. This does not continue the checkpoint's run.

Published training files have all parts, and so have our own runs (``objective.safetensors`` lies beside the
checkpoint). With an encoder alone, the predictor gets new weights, and ``target_init`` decides how the target
network starts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint.format import Checkpoint, read_tensors
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.checkpoint.torch_files import load_torch_file
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.m2d_x import M2DX
from hear_m2d.pretrain.objectives.teacher import read_teacher, with_offline
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.run_folder import OBJECTIVE_KEY
from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

# The other networks of a published training file, and our names for them.
PUBLISHED_NAMES = {
    r"decoder_(embed|blocks|norm|pred)\b": r"decoder.\1",
    r"mask_token$": "decoder.mask_token",
    r"target_(blocks|norm)\b": r"target.\1",
    r"offline_predictor\b": "offline_predictor",
}
PARTS = {"decoder.": "predictor", "target.": "target network", "offline_predictor.": "offline predictor"}
# Sizes that must agree with the weights, and their fields in a recipe.
SIZES = ("patch_size", "width", "depth", "heads", "mlp_ratio", "class_token")


def begin_objective(
    recipe: Recipe,
    *,
    mean: float,
    std: float,
    target_shape: tuple[int, ...] | None = None,
    resumed: bool = False,
) -> tuple[Recipe, Objective, list[str]]:
    """Return the recipe with its open fields filled in, its objective at the start of a run, and notes.

    The objective has new weights or those of ``init``, and its teacher, if it has one. The notes are
    those of :func:`warm_start`. ``target_shape`` is that of one item's ``target``, None if the data has none.
    The weights of a ``resumed`` run come from a saved state: ``init`` may have been removed.

    Raises:
        FileNotFoundError: No such checkpoint.
        InputError: ``init``, the teacher or the data's targets do not fit the recipe.
    """
    recipe, teacher = with_offline(recipe, mean=mean, std=std, target_shape=target_shape)
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe) if recipe.init and not resumed else []
    if isinstance(objective, M2DX):
        objective.teacher = teacher
    return recipe, objective, notes


def check_start(recipe: Recipe) -> None:
    """Raise if an initial checkpoint or a teacher does not fit; the data need not exist yet."""
    if recipe.offline.source == "teacher":
        read_teacher(recipe)
    if recipe.init:
        read_init(recipe)


def warm_start(objective: Objective, recipe: Recipe) -> list[str]:
    """Load the weights of ``recipe.init`` into a new objective of this recipe.

    A table of positions for another input length is not resampled: it keeps the sine-cosines of the new grid.

    Returns:
        One sentence on each part: taken, copied or new. They are logged too.

    Raises:
        FileNotFoundError: No such checkpoint.
        InputError: Not a checkpoint, or one of other sizes.
    """
    checkpoint = read_init(recipe)
    notes = [_take_encoder(objective, checkpoint)]
    others = _other_networks(checkpoint)
    wanted = objective.beside_encoder()
    for prefix, part in PARTS.items():
        names = [name for name in wanted if name.startswith(prefix)]
        if not names:
            continue
        if prefix == "decoder." and recipe.objective == "msm_mae":
            part = "decoder"
        if all(name in others and others[name].shape == wanted[name].shape for name in names):
            _copy(wanted, {name: others[name] for name in names})
            notes.append(f"the {part} is taken too")
            continue
        start = "starts with new weights"
        if prefix == "target.":
            start = 'starts at random (target_init = "random")'
        if prefix == "target." and recipe.target_init == "online":
            encoder = {f"target.{n}": t for n, t in objective.encoder.state_dict().items()}
            _copy(wanted, {name: encoder[name] for name in names})
            start = 'starts as a copy of the encoder (target_init = "online")'
        exists = any(name.startswith(prefix) for name in others)
        reason = "has other sizes or belongs to another objective" if exists else "is missing"
        notes.append(f"its {part} {reason}: it {start}")
    if checkpoint.config.code_base == "msm_mae" and others and recipe.decoder.positions == "2d":
        notes.append('its decoder was trained with 1-D positions: decoder.positions = "1d" keeps them')
    for note in notes:
        logger.info("%s: %s", recipe.init, note)
    return notes


def read_init(recipe: Recipe) -> Checkpoint:
    """Return the checkpoint that ``recipe.init`` names; an InputError names each size that differs."""
    checkpoint = read_weights(recipe.init)
    there, here = checkpoint.config.encoder, recipe.encoder
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(there, name), getattr(here, name)) for name in SIZES}
    if checkpoint.provenance.get("sample_rate") != "default":
        pairs["sample_rate"] = checkpoint.config.frontend.sample_rate, recipe.sample_rate
    pairs["mel bins"] = there.input_size[0], here.input_size[0]
    differing = [f"{name} {_text(a)} (the recipe {_text(b)})" for name, (a, b) in pairs.items() if a != b]
    if differing:
        raise InputError(
            f"{recipe.init} cannot be continued with this recipe: it has {', '.join(differing)}. Use a "
            f"recipe with its sizes"
        )
    return checkpoint


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _take_encoder(objective: Objective, checkpoint: Checkpoint) -> str:
    own = objective.encoder.state_dict()
    weights = {name: checkpoint.tensors[name] for name in own}  # a classifier's head is left
    there, here = checkpoint.config.encoder, objective.encoder.config
    if there.grid == here.grid:
        _copy(own, weights)
        return "the encoder is taken"
    del weights["pos_embed"]
    _copy(own, weights)
    return (
        f"the encoder is taken, with the sine-cosine positions of {here.input_size[1]} frames in place of "
        f"those of {there.input_size[1]}"
    )


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        into[name].copy_(tensor)


def _other_networks(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the other trained networks, under our names; empty if the file has none."""
    path = checkpoint.path
    run = path.with_name("objective.safetensors")
    if path.name == "checkpoint.safetensors" and run.is_file():
        return read_tensors(run, OBJECTIVE_KEY)[0]
    # A converted file only lists the other tensors of the original file.
    return _published_networks(path) if checkpoint.ignored and path.suffix != ".safetensors" else {}


def _published_networks(path: Path) -> dict[str, Tensor]:
    """Read the predictor, target network and offline predictor of a published training file."""
    try:
        content = load_torch_file(str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}; unzip it, and give the .pth in it") from error
    weights: dict[str, Tensor] = {}
    for key, value in content.get("model", content).items():
        for pattern, name in PUBLISHED_NAMES.items():
            if re.match(pattern, key) and isinstance(value, Tensor):
                weights[re.sub(f"^{pattern}", name, key)] = value.detach().float()
    for name in [name for name in weights if name.endswith(".q_bias")]:
        # The first MSM-MAE has no bias of the keys.
        q, v = weights.pop(name), weights.pop(name.replace("q_bias", "v_bias"))
        weights[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return weights
