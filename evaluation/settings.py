"""What one evaluation is: the model, the tasks, the harness's grid, the device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hear_m2d.errors import unknown_name

GRIDS = ("default", "fast", "faster")


@dataclass(frozen=True)
class Evaluation:
    """What is scored, on what, and where the results go."""

    tasks_dir: Path
    """The folder whose sub-folders are tasks."""
    out: Path
    """The folder of one model's results; the same settings again continue there."""
    model: Path | None = None
    """The checkpoint, passed to the module's ``load_model``; None calls it without."""
    module: str = "hear_m2d"
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
    """What the report calls the model; by default the checkpoint's file name."""

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise ValueError(unknown_name("grid", self.grid, GRIDS))
        if self.grid_points < 1:
            raise ValueError(f"the number of grid points must be at least 1, not {self.grid_points}")
        if self.model is not None:
            check_model(self.model, module=self.module)
        device_environment(self.device)


def check_model(model: Path, *, module: str) -> None:
    """Check that there is a checkpoint; one of ours is a file, another module's may be a folder.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is a folder, and the module is ours.
    """
    if not model.exists():
        raise FileNotFoundError(f"no checkpoint at {model}")
    if module == "hear_m2d" and model.is_dir():
        inside = model / "checkpoint.safetensors"
        hint = f"did you mean {inside}?" if inside.is_file() else "give the .safetensors or .pth file"
        raise ValueError(f"{model} is a folder, and --model is a file: {hint}")


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
        raise ValueError(f"unknown device {device!r}: cpu, cuda or cuda:N was expected")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return {"CUDA_VISIBLE_DEVICES": index}
    devices = [part.strip() for part in visible.split(",") if part.strip()]
    if int(index) >= len(devices):
        raise ValueError(f"there is no device {device}: CUDA_VISIBLE_DEVICES is {visible!r}")
    return {"CUDA_VISIBLE_DEVICES": devices[int(index)]}
