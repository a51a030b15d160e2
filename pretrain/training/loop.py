"""The life of a pretraining run, from top to bottom.

Weights, crops and masks are functions of (seed, step), so a run that was interrupted continues as if it
had not been, and needs nothing stored but weights, optimiser moments and the step.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.pretrain.data.features import training_items
from hear_m2d.pretrain.data.loader import batches
from hear_m2d.pretrain.data.prepared import LogMelData, require_frontend
from hear_m2d.pretrain.data.sampling import StepBatches
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import begin_objective, hear_model
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.distributed import Processes, StoppedError, StopRequest, join, process_device
from hear_m2d.pretrain.training.metrics import device_rate, step_operations
from hear_m2d.pretrain.training.pace import steps_of_epochs, steps_within
from hear_m2d.pretrain.training.probes import Probes, ProbeSettings
from hear_m2d.pretrain.training.run_folder import RunFolder
from hear_m2d.pretrain.training.schedules import cosine_rate, momentum_decay
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import Step, Trainer
from hear_m2d.pretrain.training.trackers import Trackers, check_trackers
from hear_m2d.utils.device import native_bfloat16
from hear_m2d.utils.errors import WorkFailedError
from hear_m2d.utils.files import disk_is_full, hold_folder, remove_leftovers
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)

DIVERGED = 10.0  # times the first loss of the log


@dataclass(frozen=True)
class Habits:
    """How a run behaves here; nothing of it changes what is learned.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, …
        log_every: Steps between two lines of the log.
        save_every: Steps between two saves of the training state.
        keep_last: How many of the newest states to keep.
        keep_every: States at multiples of so many steps are kept for good; 0 keeps none of them.
        workers: Processes that load crops beside the training, for each training process; None: four for a
            GPU, none for a CPU.
        at_once: Most clips in one forward pass of a process; 0 takes its whole share of a batch.
        progress: Show a progress bar.
        probes: Labelled sets that are asked now and then.
        track: Trackers besides TensorBoard: accelerate's names, or instances of its ``GeneralTracker``.
    """

    device: str = "auto"
    log_every: int = 10
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    workers: int | None = None
    at_once: int = 0
    progress: bool = False
    probes: ProbeSettings = field(default_factory=ProbeSettings)
    track: tuple[Any, ...] = ()


def train(
    recipe: Recipe,
    data: LogMelData,
    out: Path,
    *,
    noise: LogMelData | None = None,
    features: Path | None = None,
    minutes: float | None = None,
    force: bool = False,
    **habits: Any,
) -> Path:
    """Train a network, or continue the run that lies in ``out``; alone, or as one of a launcher's processes.

    Args:
        recipe: What to train and how.
        data: Prepared log-mels.
        out: The run's folder.
        noise: Prepared noise, where the recipe mixes some in.
        features: A folder of stored features, where the recipe learns from them.
        minutes: Choose the number of steps so that the run takes about this long here; the recipe's
            length is then ignored.
        force: Continue the run in ``out`` although it was begun with other settings.
        **habits: Those of :class:`Habits`.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: ``out`` holds another run, the data has another front end, or the processes cannot share
            a batch.
        WorkFailedError: The loss became infinite, not a number, or far too large; a step did not fit into
            the device's memory; a state could not be written; or the data could no longer be read.
        StoppedError: SIGTERM came; the state is saved.
    """
    processes, settings, run = join(), Habits(**habits), RunFolder(out)
    with (
        processes.one_fate(),
        StopRequest(processes).heard() as stop,
        _held(run, processes),
        _full_disk_told(out),
    ):
        return _train(
            run, recipe, data, noise, features, processes, stop, settings, minutes=minutes, force=force
        )


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Say of any file that does not fit what :class:`States` says of its own."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise WorkFailedError(
            f"a file in {out} cannot be written ({error.strerror}); the states that were there still are. "
            f"Make room, then the same command continues"
        ) from error


@contextmanager
def _failure_told(out: Path) -> Iterator[None]:
    """Say of a network or a disk that fails under a run that no setting was at fault."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise
        raise WorkFailedError(
            f"{str(error).rstrip('.')}. The same command continues {out} from the last saved state"
        ) from error


@contextmanager
def _held(run: RunFolder, processes: Processes) -> Iterator[None]:
    """Have the main process hold the folder; one of something else is refused untouched."""
    processes.on_main(run.known)
    held = hold_folder(run.folder)
    processes.on_main(held.__enter__)
    try:
        if processes.is_main:
            remove_leftovers(run.folder)
        yield
    finally:
        if processes.is_main:
            held.__exit__(None, None, None)


def _train(
    run: RunFolder,
    recipe: Recipe,
    data: LogMelData,
    noise: LogMelData | None,
    features: Path | None,
    processes: Processes,
    stop: StopRequest,
    settings: Habits,
    *,
    minutes: float | None,
    force: bool,
) -> Path:
    out = run.folder
    require_frontend(data, recipe.frontend_config)

    # The device, and what it computes in.
    share = processes.share(recipe.batch_size)
    place = processes.together(lambda: process_device(processes, settings.device))
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if native_bfloat16(place) else "float32"
    dtype = torch.float64 if precision == "float64" else torch.float32

    # What it hears.
    items = training_items(recipe, data, noise=noise, features=features)
    target = items[0, 0].get("target") if recipe.offline in ("labels", "features") else None

    probes = processes.together(
        lambda: Probes(
            settings.probes,
            sample_rate=recipe.sample_rate,
            epoch=len(data) // recipe.batch_size,
            read=processes.is_main,
        )
    )
    check_trackers(settings.track)

    # Where it was.
    states = States(out, keep_last=settings.keep_last, keep_every=settings.keep_every)
    first = processes.on_main(states.newest)

    # The network and its optimiser.
    def trainer(objective: Objective) -> Trainer:
        return Trainer(objective, recipe, device=place, precision=precision, at_once=settings.at_once)

    recipe, objective, start = processes.together(
        lambda: begin_objective(
            recipe,
            mean=data.mean,
            std=data.std,
            target_shape=None if target is None else tuple(target.shape),
            resumed=bool(first),
        )
    )
    objective.to(place, dtype)

    # How long: a run that is resumed keeps the number of steps that its minutes came to.
    known = processes.on_main(run.known)
    record = {
        "recipe": recipe.to_json(),
        "minutes": minutes,
        "steps": known["steps"] if known else 0,
        "data": {"clips": len(data), "hours": round(data.hours, 4), "mean": data.mean, "std": data.std},
    }
    if noise is not None:
        record["noise"] = {"clips": len(noise), "hours": round(noise.hours, 4), "mean": noise.mean}
    if minutes is None:
        steps = recipe.steps if recipe.steps is not None else steps_of_epochs(recipe, len(data))
    elif known and known.get("minutes") == minutes:
        steps = int(known["steps"])
    else:
        processes.on_main(lambda: run.changed(record, step=first, force=force))  # before minutes of timing
        # Nothing here may hold the copy, so that it is gone when training begins: it is a second network.
        steps = steps_within(minutes * 60, trainer(copy.deepcopy(objective)), recipe, processes)
        gc.collect()  # compiled blocks refer to themselves
    record["steps"] = steps
    changed = processes.on_main(lambda: run.changed(record, step=first, force=force))
    if not changed and processes.on_main(run.checkpoint.exists):
        processes.say("%s is already trained for %d steps", out, steps)
        return run.checkpoint
    training = trainer(objective)
    if first:
        processes.together(lambda: states.load(objective, training.optimizer, first))
        processes.say("continuing %s at step %d of %d", out, first, steps)
    for name, (before, now) in changed.items():
        processes.say("%s was %r, and is %r from here on", name, before, now)
    processes.on_main(lambda: run.begin(record, changed, step=first, start=start))
    first_loss = processes.on_main(lambda: run.cut_log(first or -1))
    processes.say(
        "%s: %d clips (%.2f h), %d steps of %d clips, %s on %s, %d processes, learning rate %.3g",
        recipe.objective, len(data), data.hours, steps, recipe.batch_size, precision, place.type,
        processes.count, recipe.learning_rate,
    )  # fmt: skip
    if short := data.count_shorter(recipe.input_frames):
        processes.say("%d clips are shorter than a crop and are padded with the mean", short)

    # What is looked at meanwhile.
    trackers = None
    if processes.is_main:
        trackers = Trackers(out, settings.track, recipe.to_json(), step=first)
    if probes.wanted and processes.is_main:
        logger.info(probes.describe())
    operations = step_operations(recipe, objective)
    measured = processes.together(lambda: device_rate(place, precision))
    machine_rate = processes.mean([torch.tensor(measured)])[0] * processes.count

    def log(line: dict[str, Any]) -> None:
        run.log(line)
        assert trackers is not None
        trackers.log(line)

    def ask(step: int) -> float:
        """Probe after so many steps, and return the seconds that it took."""
        start = time.perf_counter()
        if probes.due(step, steps):
            processes.on_main(
                lambda: log(probes.ask(objective, recipe, mean=data.mean, std=data.std, step=step))
            )
        return time.perf_counter() - start

    def save(step: int) -> None:
        processes.on_main(run.sync_log)  # a run continued from this state has the lines before it
        processes.on_main(lambda: states.save(objective, training.optimizer, step))

    def steps_from(begin: int, end: int) -> StepBatches:
        return StepBatches(begin, end, batch_size=recipe.batch_size, n_clips=len(data), seed=recipe.seed)

    stream = batches(
        items,
        steps_from(first, steps),
        share=share,
        patches=math.prod(recipe.encoder_config.grid),
        device=place,
        dtype=dtype,
        workers=(4 if place.type == "cuda" else 0) if settings.workers is None else settings.workers,
    )
    objective.train()
    if not first:
        ask(0)
    clock, waited, logged, ready = time.perf_counter(), 0.0, first, time.perf_counter()
    checked = first  # the loss of the steps before was finite
    bar = ProgressBar(
        total=steps,
        initial=first,
        unit="step",
        disable=not (settings.progress and processes.is_main),
    )
    # What loads ahead ends with the steps, not with the program.
    with bar, _failure_told(out), closing(stream):
        for step in range(first, steps):
            if stop.asked():
                stream.close()
                if step > first:
                    save(step)
                raise StoppedError(
                    f"stopped by SIGTERM after {step} of {steps} steps: the same command continues {out}"
                )
            batch = next(stream)
            waited += time.perf_counter() - ready
            rate = _rate(recipe, step, steps)
            done = step + 1
            logs = done % settings.log_every == 0 or done == steps
            result = training.step(batch, rate=rate, watch=logs)
            # After the optimiser, so that the target follows the updated network.
            decay = momentum_decay(step, total=steps, start=recipe.momentum_start, end=recipe.momentum_end)
            objective.momentum_update(decay)

            bar.update()
            saves = done % settings.save_every == 0 and done < steps
            if logs or saves:  # the only place where the device is waited for
                line = {"step": done, "lr": rate, **_read(result, processes)}
                _check(line, first_loss, states, partial(items.find_non_finite, steps_from(checked, done)))
                checked = done
            if logs:
                first_loss = first_loss or line["loss"]
                if recipe.objective == "m2d":
                    line["momentum"] = decay
                seconds = time.perf_counter() - clock
                line["clips_per_s"] = (done - logged) * recipe.batch_size / seconds
                line["share"] = line["clips_per_s"] * operations / machine_rate
                line["data_wait"] = waited / seconds
                if processes.is_main:
                    log(line)
                bar.note(f"loss={line['loss']:.4f}, {line['clips_per_s']:.0f} clips/s")
                clock, waited, logged = time.perf_counter(), 0.0, done
            clock += ask(done)  # before it is saved: a resumed run has asked what the saved one had
            if saves:
                save(done)
            ready = time.perf_counter()
    if trackers is not None:
        trackers.finish()

    # The result, last: its presence says that the run is whole.
    def finish() -> None:
        states.save(objective, training.optimizer, steps)
        run.save_objective(objective, record)
        summary = {"steps": steps, "seed": recipe.seed, "data": record["data"], "precision": precision}
        model = hear_model(objective, recipe, mean=data.mean, std=data.std, training=summary)
        save_checkpoint(run.checkpoint, model)

    processes.on_main(finish)
    return run.checkpoint


def _read(result: Step, processes: Processes) -> dict[str, Any]:
    """Return a step's scalars, means over the processes."""
    values = {"loss": result.loss, **result.meters, "grad_norm": result.norm}
    return dict(zip(values, processes.mean(list(values.values())), strict=True))


def _check(
    line: dict[str, Any], first_loss: float | None, states: States, bad_clip: Callable[[], str]
) -> None:
    """Stop a run whose loss is no longer a number, or far from where it began."""
    loss, norm = line["loss"], line["grad_norm"]
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite and loss <= DIVERGED * (first_loss or math.inf):
        return
    if not finite and (clip := bad_clip()):
        raise WorkFailedError(f"{clip} has values that are not finite: copy or prepare the data again")
    began = f", {first_loss:.3g} at the first line of the log" if first_loss else ""
    raise WorkFailedError(
        f"the loss is {loss:.3g} and the gradient {norm:.3g} at step {line['step']}{began}: the run stopped; "
        f"{states.kept()}. Try a smaller base_lr"
    )


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    peak, warmup = recipe.learning_rate, recipe.warmup * steps
    return cosine_rate(step, peak=peak, warmup=warmup, total=steps, minimum=recipe.min_lr)
