"""What one evaluation is: the model, the tasks, the harness's grid, the device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.hear.module import resolve_model
from hear_m2d.utils.errors import InputError, unknown_name

OURS = "hear_m2d"
GRIDS = ("default", "fast", "faster")


@dataclass(frozen=True)
class Evaluation:
    """What is scored, on what, and where the results go."""

    tasks_dir: Path
    """The folder whose sub-folders are tasks."""
    out: Path
    """The folder of one model's results; the same settings again continue there."""
    model: str | os.PathLike[str] | None = None
    """What the module's ``load_model`` gets: a path, of our own also a name or an address; None: nothing."""
    module: str = OURS
    """The module with the HEAR API."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``load_model``."""
    tasks: tuple[str, ...] = ()
    """Folder names of tasks; none means all."""
    grid: str = "default"
    """The harness's grid of hyperparameters: default, fast or faster."""
    grid_points: int = 8
    """How many points of the grid are tried."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:N``; None takes the GPU where there is one."""
    name: str = ""
    """What the report calls the model; by default the last part of ``model``, without its suffix."""

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise InputError(unknown_name("grid", self.grid, GRIDS))
        if self.grid_points < 1:
            raise InputError(f"the number of grid points must be at least 1, not {self.grid_points}")
        if self.model is not None:
            model = check_model(self.model, module=self.module)
            if not self.name and Path(model) != Path(self.model):  # a name that the module resolved
                object.__setattr__(self, "name", Path(self.model).name)
            object.__setattr__(self, "model", model)
        device_environment(self.device)


def check_model(model: str | os.PathLike[str], *, module: str) -> str | os.PathLike[str]:
    """Return what ``load_model`` gets: for our own module as it was typed, for another an existing path.

    Raises:
        InputError: If another module's file or folder is not there.
    """
    if module == OURS:
        return model  # a path, a name, an address: read_weights finds it, or says what is wrong
    return resolve_model(module, model)


def device_environment(device: str | None) -> dict[str, str]:
    """Return the variables that make the kit, which takes the first GPU it sees, use the device asked for.

    Raises:
        ValueError: If the device is none of cpu, cuda, cuda:N.
    """
    if device is None or device == "cuda":
        return {}
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdecimal():
        raise InputError(f"unknown device {device!r}: cpu, cuda or cuda:N was expected")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return {"CUDA_VISIBLE_DEVICES": index}
    devices = [part.strip() for part in visible.split(",") if part.strip()]
    if int(index) >= len(devices):
        raise InputError(f"there is no device {device}: CUDA_VISIBLE_DEVICES is {visible!r}")
    return {"CUDA_VISIBLE_DEVICES": devices[int(index)]}
