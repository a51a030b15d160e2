"""The number of steps of a run: from its epochs, or as many as fit into the given minutes."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.distributed import Processes
from hear_m2d.pretrain.training.step import Trainer
from hear_m2d.utils.errors import InputError

TIMED_STEPS, TIMED_S = 5, 10.0  # minimum number of steps, maximum seconds
TIMED_SHARE = 0.2  # maximum share of the available time, unless one step takes longer


def steps_of_epochs(recipe: Recipe, clips: int) -> int:
    """Return the number of steps in the recipe's epochs; an InputError if the clips do not fill one batch."""
    per_epoch = clips // recipe.batch_size
    if per_epoch == 0:
        raise InputError(
            f"the data has {clips} clips, fewer than one batch of {recipe.batch_size}: give --steps, or a "
            f"smaller batch_size"
        )
    return per_epoch * (recipe.epochs or 0)


def steps_within(seconds: float, trial: Trainer, recipe: Recipe, processes: Processes) -> int:
    """Time a few steps of a copy on noise, and return how many fit into the available seconds.

    The ``trial`` trains a copy of the objective. Raises an InputError if the time is not positive.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"minutes = {seconds / 60:g}: give a number above 0")
    encoder, objective = recipe.encoder, trial.objective
    clips = recipe.batch_size // processes.count
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn((clips, 1, *encoder.input_size), generator=generator),
        "noise": mask_noise(recipe.seed, 0, clips, math.prod(encoder.grid)),
    }
    if objective.offline_shape:
        batch["target"] = torch.zeros(clips, *objective.offline_shape)
    batch = {name: tensor.to(next(objective.parameters())) for name, tensor in batch.items()}
    took: list[float] = []

    def enough() -> bool:
        spent = sum(took)
        if took and spent >= TIMED_SHARE * seconds:
            return True
        # On a busy machine a few steps measure too little: a twentieth of the time is enough.
        return len(took) > TIMED_STEPS and spent >= min(seconds / 20, TIMED_S)

    while not processes.run_on_main(enough):
        start = time.perf_counter()
        result = trial.step(batch, rate=recipe.learning_rate)
        objective.momentum_update(recipe.momentum_end)
        float(result.loss)  # waits for the device
        took.append(time.perf_counter() - start)
    trial.accelerator.free_memory()
    step_s = float(np.median(took[1:] or took))  # the first step warms up
    steps = processes.run_on_main(lambda: max(1, int((seconds - sum(took)) / step_s)))
    processes.log_once(
        "%d steps fit into %.3g minutes: %.3g s a step, the median of %d after one to warm up",
        steps, seconds / 60, step_s, max(len(took) - 1, 1),
    )  # fmt: skip
    return steps
