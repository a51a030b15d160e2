"""How many steps a run has: those of its epochs, or as many as fit into the minutes that were asked for."""

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

TIMED_STEPS, TIMED_S = 5, 10.0  # at least so many steps, at most so long


def steps_of_epochs(recipe: Recipe, clips: int) -> int:
    """Return how many steps the recipe's epochs are.

    Raises:
        ValueError: The clips do not fill one batch.
    """
    per_epoch = clips // recipe.batch_size
    if per_epoch == 0:
        raise InputError(
            f"the data has {clips} clips, fewer than one batch of {recipe.batch_size}: give --steps, or a "
            f"smaller batch_size"
        )
    return per_epoch * (recipe.epochs or 0)


def steps_within(seconds: float, trial: Trainer, recipe: Recipe, processes: Processes) -> int:
    """Time a few steps of a copy on noise, and return how many fit.

    Args:
        seconds: In which they shall fit.
        trial: With a copy of the objective: it is trained.
        recipe: What to train.
        processes: Those of the run.

    Raises:
        ValueError: No length of time.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"minutes = {seconds / 60:g}: give a number above 0")
    encoder, objective = recipe.encoder_config, trial.objective
    weight = next(objective.parameters())
    clips = recipe.batch_size // processes.count
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn((clips, 1, *encoder.input_size), generator=generator),
        "noise": mask_noise(recipe.seed, 0, clips, math.prod(encoder.grid)),
    }
    if objective.offline_shape:
        batch["target"] = torch.zeros(clips, *objective.offline_shape)
    batch = {name: tensor.to(weight) for name, tensor in batch.items()}
    took: list[float] = []

    def enough() -> bool:
        # Some steps are no measure on a machine that does other things: a twentieth of the time is.
        return len(took) >= 2 + TIMED_STEPS and sum(took) >= min(seconds / 20, TIMED_S)

    while not processes.on_main(enough):
        start = time.perf_counter()
        result = trial.step(batch, rate=recipe.learning_rate)
        objective.momentum_update(recipe.momentum_end)
        float(result.loss)  # waits for the device
        took.append(time.perf_counter() - start)
    trial.accelerator.free_memory()
    step_s = float(np.mean(took[2:]))  # the first two warm up
    steps = processes.on_main(lambda: max(1, int(seconds / step_s)))
    processes.say("%.2f s a step: %d steps in %.3g minutes", step_s, steps, seconds / 60)
    return steps
