"""The life of a pretraining run, from top to bottom.

Weights, crops and masks are functions of (seed, step), so a run that was interrupted continues as if it
had not been, and needs nothing stored but weights, optimiser moments and the step.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from hear_m2d.checkpoint import save_checkpoint
from hear_m2d.device import native_bfloat16, pick_device
from hear_m2d.errors import WorkFailedError
from hear_m2d.files import hold_folder, remove_leftovers
from hear_m2d.pretrain.build import build_objective, hear_model
from hear_m2d.pretrain.dataset import Crops, LogMelData, StepBatches
from hear_m2d.pretrain.objective import Objective, Outcome
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.run import RunFolder
from hear_m2d.pretrain.schedules import cosine_rate, decay_groups, momentum_decay

logger = logging.getLogger(__name__)

TIMED_STEPS, TIMED_S = 5, 10.0  # at least so many steps, at most so long


def train(
    recipe: Recipe,
    data: LogMelData,
    out: Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
    log_every: int = 10,
    save_every: int = 500,
    workers: int = 0,
    progress: bool = False,
) -> Path:
    """Train a network, or continue the run that lies in ``out``.

    Args:
        recipe: What to train and how.
        data: Prepared log-mels.
        out: The run's folder.
        device: ``auto``, ``cpu``, ``cuda``, …
        minutes: Choose the number of steps so that the run takes about this long here; the recipe's
            length is then ignored.
        log_every: Steps between two lines of the log.
        save_every: Steps between two saves of the training state.
        workers: Processes that load crops beside the training.
        progress: Show a progress bar.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: ``out`` holds another run, or the data has another front end.
        WorkFailedError: The loss became infinite or not a number.
    """
    run = RunFolder(out)
    run.known()  # a folder of something else is refused untouched
    with hold_folder(out):
        remove_leftovers(out)
        return _train(
            run, recipe, data, device=device, minutes=minutes, log_every=log_every, save_every=save_every,
            workers=workers, progress=progress,
        )  # fmt: skip


def _train(
    run: RunFolder,
    recipe: Recipe,
    data: LogMelData,
    *,
    device: str,
    minutes: float | None,
    log_every: int,
    save_every: int,
    workers: int,
    progress: bool,
) -> Path:
    out = run.folder
    if data.frontend != recipe.frontend_config:
        raise ValueError(
            f"{data.folder} was prepared at {data.frontend.sample_rate} Hz, the recipe wants "
            f"{recipe.sample_rate} Hz: type hear-m2d prepare AUDIO OUT --sample-rate {recipe.sample_rate}, "
            f"or give the folder of audio as --data"
        )

    # The device, and what it computes in.
    place = pick_device(device)
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if native_bfloat16(place) else "float32"
    accelerator = make_accelerator(place, precision, out)

    # The network and its optimiser.
    objective = build_objective(recipe).to(accelerator.device)
    optimizer = make_optimizer(objective, recipe)
    patches = math.prod(recipe.encoder_config.grid)

    # How long: a run that is resumed keeps the number of steps that its minutes came to.
    known = run.known()
    if minutes is not None:
        steps = int(known["steps"]) if known else _steps_within(minutes * 60, objective, recipe, accelerator)
    else:
        steps = recipe.steps if recipe.steps is not None else _steps_of_epochs(recipe, len(data))
    record = {
        "recipe": recipe.to_json(),
        "minutes": minutes,
        "steps": steps,
        "data": {"clips": len(data), "hours": round(data.hours, 4), "mean": data.mean, "std": data.std},
    }
    run.begin(record)
    if run.checkpoint.exists():
        logger.info("%s is already trained for %d steps", out, steps)
        return run.checkpoint

    # Where it was.
    first = run.load_state(objective, optimizer)
    run.cut_log(first)
    if first:
        logger.info("continuing %s at step %d of %d", out, first, steps)
    logger.info(
        "%s: %d clips (%.2f h), %d steps of %d clips, %s on %s, learning rate %.3g",
        recipe.objective, len(data), data.hours, steps, recipe.batch_size, precision, place,
        recipe.learning_rate,
    )  # fmt: skip
    short = int((data.lengths < recipe.input_frames).sum())
    if short:
        logger.info("%d clips are shorter than a crop and are padded with the mean", short)
    accelerator.init_trackers("tensorboard")
    stepper, optimizer_ = accelerator.prepare(objective, optimizer)
    crops = Crops(data, frames=recipe.input_frames, seed=recipe.seed)
    keys = StepBatches(first, steps, batch_size=recipe.batch_size, n_clips=len(data), seed=recipe.seed)
    loader = DataLoader(
        crops,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=place.type == "cuda",
        generator=torch.Generator(),  # else it draws from the caller's random state
    )

    objective.train()
    clock, waited, logged, ready = time.perf_counter(), 0.0, first, time.perf_counter()
    with tqdm(total=steps, initial=first, unit="step", disable=not progress, mininterval=1.0) as bar:
        for step, batch in enumerate(loader, start=first):
            batch = {n: t.to(accelerator.device, non_blocking=True) for n, t in batch.items()}
            x = batch["x"]  # (batch, 1, mels, frames)
            waited += time.perf_counter() - ready
            rate = _rate(recipe, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            noise = mask_noise(recipe.seed, step, len(x), patches).to(x.device)
            with torch.no_grad():
                target = objective.offline_target(batch)
            outcome, norm = training_step(
                stepper,
                optimizer_,
                accelerator,
                x=x,
                noise=noise,
                target=target,
                clip_grad=recipe.clip_grad,
            )
            # After the optimiser, so that the target follows the updated network.
            decay = momentum_decay(step, total=steps, start=recipe.momentum_start, end=recipe.momentum_end)
            objective.momentum_update(decay)

            done = step + 1
            bar.update()
            logs = done % log_every == 0 or done == steps
            saves = done % save_every == 0 and done < steps
            if logs or saves:  # the only place where the device is waited for
                line: dict[str, Any] = {"step": done, "loss": float(outcome.loss.detach()), "lr": rate}
                line |= {name: float(value) for name, value in outcome.meters.items()}
                line["grad_norm"] = float(norm)
                if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
                    raise WorkFailedError(
                        f"the loss is {line['loss']} and the gradient {line['grad_norm']} at step {done}: "
                        f"the run stopped; {run.state} keeps the last good state, if there was one. "
                        f"Try a smaller base_lr"
                    )
            if logs:
                if recipe.objective == "m2d":
                    line["momentum"] = decay
                seconds = time.perf_counter() - clock
                line["clips_per_s"] = (done - logged) * recipe.batch_size / seconds
                line["data_wait"] = waited / seconds
                run.log(line)
                accelerator.log({k: v for k, v in line.items() if k != "step"}, step=done)
                bar.set_postfix(loss=f"{line['loss']:.4f}", clips_s=f"{line['clips_per_s']:.0f}")
                clock, waited, logged = time.perf_counter(), 0.0, done
            if saves:
                run.save_state(objective, optimizer, done)
            ready = time.perf_counter()
    accelerator.end_training()

    # The result, last: its presence says that the run is whole.
    run.save_state(objective, optimizer, steps)
    run.save_objective(objective, record)
    summary = {"steps": steps, "seed": recipe.seed, "data": record["data"], "precision": precision}
    save_checkpoint(
        run.checkpoint, hear_model(objective, recipe, mean=data.mean, std=data.std, training=summary)
    )
    return run.checkpoint


def training_step(
    stepper: Any,
    optimizer: Any,
    accelerator: Accelerator,
    *,
    x: Tensor,
    noise: Tensor,
    clip_grad: float,
    target: Tensor | None = None,
) -> tuple[Outcome, Tensor]:
    """Run one step: forward, backward, clip, update.

    Args:
        stepper: The prepared objective.
        optimizer: The prepared optimiser.
        accelerator: What prepared them.
        x: Standardised log-mel, (batch, 1, mels, frames).
        noise: Uniform, (batch, patches).
        clip_grad: Largest global gradient norm; 0 does not clip.
        target: The objective's offline target, where it has one.

    Returns:
        The outcome and the gradient's norm before clipping.
    """
    outcome: Outcome = stepper(x, noise, target)
    accelerator.backward(outcome.loss)
    norm = accelerator.clip_grad_norm_(stepper.parameters(), clip_grad or math.inf)
    optimizer.step()
    optimizer.zero_grad()
    return outcome, norm


def make_accelerator(device: torch.device, precision: str, out: Path | None = None) -> Accelerator:
    """Return an accelerator for one device; with ``out`` it writes TensorBoard's files there."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the last run's settings otherwise
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        log_with="tensorboard" if out else None,
        project_dir=out,
    )


def make_optimizer(objective: Objective, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's AdamW, fused."""
    groups = decay_groups(objective, recipe.weight_decay)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)


def mask_noise(seed: int, step: int, batch: int, patches: int) -> Tensor:
    """Return the noise that draws a step's masks, (batch, patches): a function of (seed, step)."""
    word = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(word))


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    peak, warmup = recipe.learning_rate, recipe.warmup * steps
    return cosine_rate(step, peak=peak, warmup=warmup, total=steps, minimum=recipe.min_lr)


def _steps_of_epochs(recipe: Recipe, clips: int) -> int:
    per_epoch = clips // recipe.batch_size
    if per_epoch == 0:
        raise ValueError(
            f"the data has {clips} clips, fewer than one batch of {recipe.batch_size}: give --steps, or a "
            f"smaller batch_size"
        )
    return per_epoch * (recipe.epochs or 0)


def _steps_within(seconds: float, objective: Objective, recipe: Recipe, accelerator: Accelerator) -> int:
    """Time a few steps of a copy on noise, and return how many fit."""
    stepper, optimizer = accelerator.prepare(trial := copy.deepcopy(objective), make_optimizer(trial, recipe))
    encoder = recipe.encoder_config
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((recipe.batch_size, 1, *encoder.input_size), generator=generator).to(accelerator.device)
    noise = mask_noise(recipe.seed, 0, len(x), math.prod(encoder.grid)).to(x.device)
    took: list[float] = []
    # Some steps are no measure on a machine that does other things: a twentieth of the time is.
    while len(took) < 2 + TIMED_STEPS or sum(took) < min(seconds / 20, TIMED_S):  # the first two warm up
        start = time.perf_counter()
        outcome, _ = training_step(
            stepper, optimizer, accelerator, x=x, noise=noise, clip_grad=recipe.clip_grad
        )
        trial.momentum_update(recipe.momentum_end)
        float(outcome.loss.detach())  # waits for the device
        took.append(time.perf_counter() - start)
    accelerator.free_memory()
    step_s = float(np.mean(took[2:]))
    steps = max(1, int(seconds / step_s))
    logger.info("%.2f s a step: %d steps in %.3g minutes", step_s, steps, seconds / 60)
    return steps
