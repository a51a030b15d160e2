"""Start a new run from a checkpoint: `init` of a recipe. This does not continue the checkpoint's run.

Our own runs and published training files give all parts (``objective.safetensors`` is beside our checkpoint).
With an encoder alone, the predictor gets new weights, and the target starts as ``target_init`` says.
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
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.run_folder import OBJECTIVE_KEY
from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

# Other networks in a published training file, and our names for them.
BESIDE = {
    r"decoder_(embed|blocks|norm|pred)\b": r"decoder.\1",
    r"mask_token$": "decoder.mask_token",
    r"target_(blocks|norm)\b": r"target.\1",
    r"offline_predictor\b": "offline_predictor",
}
PARTS = {"decoder.": "predictor", "target.": "target network", "offline_predictor.": "offline predictor"}
# Sizes that must agree with the weights, and their fields in a recipe.
SIZES = ("patch_size", "width", "depth", "heads", "mlp_ratio", "class_token")


def warm_start(objective: Objective, recipe: Recipe) -> list[str]:
    """Put the weights of ``recipe.init`` into a fresh objective.

    A table of positions for another input length is not resampled: it keeps the sine-cosines of the new grid.

    Args:
        objective: Of this recipe.
        recipe: Its ``init`` names the checkpoint.

    Returns:
        One sentence on each part: taken, copied or fresh. They are logged too.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: Not a checkpoint, or one of other sizes.
    """
    checkpoint = read_init(recipe)
    notes = [_take_encoder(objective, checkpoint)]
    rest = _other_networks(checkpoint)
    wanted = objective.beside_encoder()
    for prefix, part in PARTS.items():
        names = [name for name in wanted if name.startswith(prefix)]
        if not names:
            continue
        if prefix == "decoder." and recipe.objective == "msm_mae":
            part = "decoder"
        there = [name for name in rest if name.startswith(prefix)]
        if there and all(name in rest and rest[name].shape == wanted[name].shape for name in names):
            _copy(wanted, {name: rest[name] for name in names})
            notes.append(f"the {part} is taken too")
            continue
        why = "is of other sizes or of another objective" if there else "is not there"
        if prefix == "target." and recipe.target_init == "online":
            encoder = {f"target.{n}": t for n, t in objective.encoder.state_dict().items()}
            _copy(wanted, {name: encoder[name] for name in names})
            notes.append(f'its {part} {why}: it starts as a copy of the encoder (target_init = "online")')
        elif prefix == "target.":
            notes.append(f'its {part} {why}: it starts at random (target_init = "random")')
        else:
            notes.append(f"its {part} {why}: it starts anew")
    if checkpoint.config.code_base == "msm_mae" and rest and recipe.decoder.positions == "2d":
        notes.append('its decoder was trained with 1-D positions: decoder.positions = "1d" keeps them')
    for note in notes:
        logger.info("%s: %s", recipe.init, note)
    return notes


def read_init(recipe: Recipe) -> Checkpoint:
    """Return the checkpoint that ``recipe.init`` names.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: Not a checkpoint, or one of other sizes: each that differs is named.
    """
    checkpoint = read_weights(recipe.init)
    there, here = checkpoint.config.encoder, recipe.encoder
    differing = [name for name in SIZES if getattr(there, name) != getattr(here, name)]
    pairs = {name: (getattr(there, name), getattr(here, name)) for name in differing}
    rates = (checkpoint.config.frontend.sample_rate, recipe.sample_rate)
    if rates[0] != rates[1] and checkpoint.provenance.get("sample_rate") != "default":
        pairs["sample_rate"] = rates
    if there.input_size[0] != here.input_size[0]:
        pairs["mel bins"] = (there.input_size[0], here.input_size[0])
    if pairs:
        sizes = ", ".join(f"{name} {_text(a)} (the recipe {_text(b)})" for name, (a, b) in pairs.items())
        raise InputError(
            f"{recipe.init} cannot be continued with this recipe: it has {sizes}. Use a recipe of its sizes"
        )
    return checkpoint


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _take_encoder(objective: Objective, checkpoint: Checkpoint) -> str:
    names = objective.encoder.state_dict().keys()
    weights = {name: checkpoint.tensors[name] for name in names}  # a classifier's head is left
    there, here = checkpoint.config.encoder, objective.encoder.config
    if there.grid == here.grid:
        _copy(objective.encoder.state_dict(), weights)
        return "the encoder is taken"
    del weights["pos_embed"]
    _copy(objective.encoder.state_dict(), weights)
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
    if checkpoint.ignored:
        return _published_networks(path)
    return {}


def _published_networks(path: Path) -> dict[str, Tensor]:
    """Read the predictor, target network and offline predictor of a published training file."""
    if path.suffix == ".safetensors":  # converted: the note describes the original file
        return {}
    weights: dict[str, Tensor] = {}
    try:
        content = load_torch_file(str(path))
        state = content.get("model", content)
        for key, value in state.items():
            if (name := _our_name(key)) and isinstance(value, Tensor):
                weights[name] = value.detach().float()
    except InputError as error:
        raise InputError(f"{path}: {error}; unzip it, and give the .pth in it") from error
    for name in [
        name for name in weights if name.endswith(".q_bias")
    ]:  # the first MSM-MAE has no bias of the keys
        q, v = weights.pop(name), weights.pop(name.replace("q_bias", "v_bias"))
        weights[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return weights


def _our_name(key: str) -> str | None:
    for pattern, name in BESIDE.items():
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", name, key)
    return None
