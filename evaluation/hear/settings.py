"""Settings of one evaluation: the model, the tasks, the harness's grid, the devices."""

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
PUBLISHED_GRID = ("default", 8)
"""The harness's grid and its number of points, as HEAR reports them."""


@dataclass(frozen=True)
class Evaluation:
    """The model to score, the tasks, and where the results go."""

    tasks_dir: Path
    """The folder whose sub-folders are tasks."""
    out: Path
    """The folder of one model's results; a call with the same settings continues there."""
    model: str | os.PathLike[str] | None = None
    """Argument of the module's ``load_model``: a path; for our own module also a name or an address."""
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
    in_memory: bool = True
    """Whether prediction holds the embeddings in memory; otherwise they are read from disk."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:N``; None uses all GPUs, or the CPU where there is none."""
    name: str = ""
    """What the report calls the model; by default the last part of ``model``, without its suffix."""
    jobs: int | None = None
    """How many tasks run at once (with Ray: on each machine); by default one per GPU, or one."""
    ray: str | None = None
    """The address of a Ray cluster that runs the tasks; None: this machine."""
    download: str | None = None
    """The address of the archives from which missing tasks are fetched; None: nothing is fetched."""

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise InputError(unknown_name("grid", self.grid, GRIDS))
        if self.grid_points < 1:
            raise InputError(f"the number of grid points must be at least 1, not {self.grid_points}")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"the number of jobs must be at least 1, not {self.jobs}")
        if self.model is not None:
            model = check_model(self.model, module=self.module)
            if not self.name and Path(model) != Path(self.model):  # a name that the module resolved
                object.__setattr__(self, "name", Path(self.model).name)
            object.__setattr__(self, "model", model)
        kind, _, index = (self.device or "cpu").partition(":")
        if kind not in {"cpu", "cuda"} or (index and (kind == "cpu" or not index.isdecimal())):
            raise InputError(f"unknown device {self.device!r}: it must be cpu, cuda or cuda:N")


def check_model(model: str | os.PathLike[str], *, module: str) -> str | os.PathLike[str]:
    """Return what ``load_model`` gets: for our own module as it was typed, for another an existing path.

    Raises:
        InputError: If another module's file or folder is not there.
    """
    if module == OURS:
        return model  # a path, a name, an address: read_weights finds it, or reports what is wrong
    return resolve_model(module, model)


def visible_gpus(device: str | None) -> list[str]:
    """Return the GPUs to use, each as a value of ``CUDA_VISIBLE_DEVICES``; none means the CPU.

    Nothing is computed on a GPU for this: the kit records how much of its memory is in use.

    Raises:
        InputError: If a GPU is asked for that torch does not see.
    """
    import torch

    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device in {None, "cpu"} and not count:
        return []
    if not count:
        raise InputError(f"the device {device} cannot be used: torch sees no GPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [part.strip() for part in visible.split(",") if part.strip()] or [str(i) for i in range(count)]
    _, _, index = (device or "cuda").partition(":")
    if not index:
        return names[:count]
    if int(index) >= count:
        raise InputError(f"there is no device {device}: torch sees {count}, counted from cuda:0")
    return [names[int(index)]]


def job_environments(settings: Evaluation) -> list[dict[str, str]]:
    """Return the environment variables of each of the processes that run at once: its threads and its GPU.

    torch's number of threads in this process (its cores, or ``OMP_NUM_THREADS``) is divided among them, so
    that the same number of jobs on the same machine computes in the same order.
    """
    import torch

    gpus = visible_gpus(settings.device)
    jobs = settings.jobs or max(1, len(gpus))
    threads = str(max(1, torch.get_num_threads() // jobs))
    return [
        {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)] if gpus else "",
        }
        for job in range(jobs)
    ]
