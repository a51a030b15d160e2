"""What is looked at: a run's folder, finished or not, or any checkpoint that `load_model` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hear_m2d.checkpoint.build import build_model
from hear_m2d.checkpoint.format import read_checkpoint, read_tensors
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import build_objective, hear_model
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.run_folder import OBJECTIVE_KEY, RunFolder
from hear_m2d.pretrain.training.state import STATE_KEY, States
from hear_m2d.utils.errors import InputError

KINDS = {
    "m2d": "M2D",
    "m2d_x": "M2D-X",
    "m2d_as": "M2D-AS",
    "m2d_s": "M2D-S",
    "m2d_clap": "M2D-CLAP",
    "msm_mae": "MSM-MAE",
}


@dataclass(frozen=True)
class Source:
    """A network to look at.

    Attributes:
        name: What to call it.
        model: Encoder, front end, statistics.
        painter: The MSM-MAE, where there is its decoder.
        why_no_painting: Otherwise: why there are no reconstructions, a sentence.
        training: How it was trained, a sentence.
    """

    name: str
    model: HearModel
    painter: MSMMAE | None
    why_no_painting: str
    training: str

    @property
    def kind(self) -> str:
        """The method's name."""
        return KINDS.get(self.model.config.kind, self.model.config.kind)


def open_source(name: str) -> Source:
    """Open a run's folder, or a checkpoint by its path, address or name.

    Raises:
        FileNotFoundError: There is no such thing.
        ValueError: A run that has no weights yet, or no checkpoint.
    """
    path = Path(name)
    if (path / "run.json").is_file():
        return _open_run(RunFolder(path))
    if path.is_file() and path.name == "checkpoint.safetensors" and path.with_name("run.json").is_file():
        return _open_run(RunFolder(path.parent))
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is empty: give a run's folder, or a checkpoint")
    checkpoint = read_weights(name)
    model = build_model(checkpoint)
    kind = KINDS.get(model.config.kind, model.config.kind)
    if model.config.kind == "msm_mae":
        why = (
            "The checkpoint holds the encoder alone. The decoder, which paints, lies in the run's folder: "
            "give that to see reconstructions."
        )
    else:
        why = _paints_nothing(kind)
    return Source(Path(name).name or name, model, None, why, _training(model.config.training))


def _open_run(folder: RunFolder) -> Source:
    record = folder.known()
    assert record is not None
    try:
        recipe = Recipe(**record["recipe"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder.record} has a recipe that this version does not know: {error}") from error
    name = folder.folder.resolve().name
    paints = recipe.objective == "msm_mae"
    if folder.checkpoint.exists():
        model = build_model(read_checkpoint(folder.checkpoint))
        why, painter = _paints_nothing(KINDS.get(model.config.kind, model.config.kind)), None
        if paints and folder.objective.exists():
            rest, _ = read_tensors(folder.objective, OBJECTIVE_KEY)
            encoder = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
            painter = _filled(recipe, {**encoder, **rest}, folder.objective)
        elif paints:
            why = f"{folder.objective.name}, which holds the decoder, is not in the run's folder."
        return Source(
            name,
            model,
            painter if isinstance(painter, MSMMAE) else None,
            why,
            _training(model.config.training),
        )
    # Not finished: as it was when its state was last saved.
    states = States(folder.folder)
    if not (step := states.newest()):
        raise InputError(
            f"{folder.folder} is a run that has saved nothing yet: wait for its first save (--save-every), "
            f"or let it finish"
        )
    tensors, _ = read_tensors(states.path(step), STATE_KEY)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    objective = _filled(recipe, weights, states.path(step))
    data = record["data"]
    model = hear_model(objective, recipe, mean=data["mean"], std=data["std"], training={})
    model.frontend = LogMelSpectrogram(model.config.frontend)  # hear_model leaves its tables without storage
    training = _sentence(recipe.to_json(), step, data, of=int(record["steps"]))
    painter = objective if isinstance(objective, MSMMAE) else None
    return Source(name, model, painter, _paints_nothing(KINDS.get(model.config.kind, "M2D")), training)


def _filled(recipe: Recipe, weights: dict[str, Tensor], path: Path) -> Objective:
    objective = build_objective(recipe)
    try:
        objective.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} is of another network: {error}") from error
    return objective.eval()


def _paints_nothing(kind: str) -> str:
    return f"{kind} predicts features of hidden patches, not their pixels: there is nothing painted to see."


def _training(training: Mapping[str, Any]) -> str:
    """Say how a checkpoint was trained; what it says may come from anyone, and in any form."""
    recipe, data = training.get("recipe"), training.get("data")
    if not isinstance(recipe, dict) or not isinstance(training.get("steps"), int):
        return "The checkpoint does not say how it was trained."
    return _sentence(recipe, training["steps"], data if isinstance(data, dict) else {})


def _sentence(
    recipe: Mapping[str, Any], steps: int, data: Mapping[str, Any], *, of: int | None = None
) -> str:
    if steps == 0 and of is None:
        return "Not trained: fresh weights."
    length = f"{steps} steps" if of is None else f"{steps} of {of} steps so far"
    clips = f", from {data['clips']} clips ({data['hours']} h)" if {"clips", "hours"} <= data.keys() else ""
    about = f": {recipe['description']}" if recipe.get("description") else ""
    return f"Trained {length} of {recipe.get('batch_size')} clips{clips}, seed {recipe.get('seed')}{about}"
