"""The network to draw: a run's folder, finished or not, or any checkpoint that `load_model` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hear_m2d.checkpoint.build import build_model
from hear_m2d.checkpoint.format import read_checkpoint, read_tensors
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import build_objective, hear_model
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.pretrain.recipe import Recipe, recipe_of_record
from hear_m2d.pretrain.training.run_folder import OBJECTIVE_KEY, RunFolder
from hear_m2d.pretrain.training.state import States
from hear_m2d.utils.errors import InputError

METHODS = {
    "m2d": "M2D",
    "m2d_x": "M2D-X",
    "m2d_as": "M2D-AS",
    "m2d_s": "M2D-S",
    "m2d_clap": "M2D-CLAP",
    "msm_mae": "MSM-MAE",
}


@dataclass(frozen=True)
class Network:
    """A network to draw."""

    name: str  # for the title
    model: HearModel  # encoder, front end, statistics
    mae: MSMMAE | None  # the MSM-MAE with its decoder, if there is one
    missing_decoder: str  # where an MSM-MAE's decoder would be
    training: dict[str, Any] | None  # recipe, steps done, all steps (`of`), data; None if unknown

    @property
    def method(self) -> str:
        """The method's name."""
        return METHODS.get(self.model.config.kind, self.model.config.kind)


def open_network(name: str) -> Network:
    """Open a run's folder, or a checkpoint by its path, address or name.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It is a run without weights yet, or not a checkpoint.
    """
    path = Path(name)
    if path.is_file() and path.name == "checkpoint.safetensors" and path.with_name("run.json").is_file():
        path = path.parent
    if (path / "run.json").is_file():
        return _open_run(RunFolder(path))
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is empty: give a run's folder, or a checkpoint")
    model = build_model(read_weights(name))
    missing = "the checkpoint holds the encoder alone; the decoder is in the run's folder: give that"
    return Network(Path(name).name or name, model, None, missing, _training(model.config.training))


def _open_run(folder: RunFolder) -> Network:
    record = folder.known()
    assert record is not None
    recipe = recipe_of_record(record["recipe"], str(folder.record))
    objective: Objective | None = None
    if folder.checkpoint.exists():
        model = build_model(read_checkpoint(folder.checkpoint))
        training = _training(model.config.training)
        if recipe.objective == "msm_mae" and folder.objective.exists():
            tensors, _ = read_tensors(folder.objective, OBJECTIVE_KEY)
            encoder = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
            objective = _load(recipe, {**encoder, **tensors}, folder.objective)
    else:  # not finished: use its newest state
        states = States(folder.folder)
        step, tensors = states.newest()
        if not step:
            raise InputError(
                f"{folder.folder} is a run that has saved nothing yet: wait for its first save "
                f"(--save-every), or let it finish"
            )
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        objective = _load(recipe, weights, states.path(step))
        data = record["data"]
        model = hear_model(objective, recipe, mean=data["mean"], std=data["std"], training={})
        training = {"recipe": recipe.to_json(), "steps": step, "of": int(record["steps"]), "data": data}
    mae = objective if isinstance(objective, MSMMAE) else None
    missing = f"{folder.objective.name}, which holds the decoder, is not in the run's folder"
    return Network(folder.folder.resolve().name, model, mae, missing, training)


def _load(recipe: Recipe, weights: dict[str, Tensor], path: Path) -> Objective:
    objective = build_objective(recipe)
    try:
        objective.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} is of another network: {error}") from error
    return objective.eval()


def _training(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a checkpoint was trained; its metadata may come from an unknown source, in any form."""
    recipe, steps, data = training.get("recipe"), training.get("steps"), training.get("data")
    if not isinstance(recipe, dict) or not isinstance(steps, int):
        return None
    return {"recipe": recipe, "steps": steps, "of": None, "data": data if isinstance(data, dict) else {}}
