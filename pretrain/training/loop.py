"""A pretraining run, from start to end.

Weights, crops and masks are functions of (seed, step), so that an interrupted run continues with the same
result. Only weights, optimizer moments and the step are stored.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.pretrain.data.features import training_items
from hear_m2d.pretrain.data.loader import batches
from hear_m2d.pretrain.data.prepared import LogMelData, require_frontend
from hear_m2d.pretrain.data.sampling import StepBatches
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import begin_objective, hear_model
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.distributed import (
    Processes,
    StoppedError,
    StopRequest,
    init_distributed,
    process_device,
)
from hear_m2d.pretrain.training.estimate import step_operations
from hear_m2d.pretrain.training.metrics import MatrixRate
from hear_m2d.pretrain.training.pace import steps_of_epochs, steps_within
from hear_m2d.pretrain.training.probes import Probes, ProbeSettings
from hear_m2d.pretrain.training.run_folder import RunFolder, lock_run, report_data_errors, report_io_errors
from hear_m2d.pretrain.training.schedules import learning_rate, momentum_decay
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import Step, Trainer
from hear_m2d.pretrain.training.trackers import Trackers, check_trackers
from hear_m2d.utils.device import native_bfloat16
from hear_m2d.utils.errors import WorkFailedError
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)

DIVERGED = 10.0  # times the first loss of the log
RATE_MOVED = 0.2  # share by which the matrix rate must change to be logged


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a run on this machine, which do not change the trained weights.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, …
        log_every: Steps between two lines of the log.
        save_every: Steps between two saves of the training state.
        keep_last: How many of the newest states to keep.
        keep_every: States at multiples of so many steps are kept for good; 0 keeps none of them.
        workers: Processes that load crops beside the training, for each training process; None: four for a
            GPU, none for a CPU.
        micro_batch_size: Maximum number of clips in one forward pass; 0: on a GPU as many as fit, on a CPU
            all.
        progress: Show a progress bar.
        probes: Labeled sets that are probed during the run.
        track: Trackers besides TensorBoard: accelerate's names, or instances of its ``GeneralTracker``.
    """

    device: str = "auto"
    log_every: int = 10
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    workers: int | None = None
    micro_batch_size: int = 0
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
    **options: Any,
) -> Path:
    """Train a network, or continue the run in ``out``, in one process or as one of a launcher's processes.

    Args:
        recipe: What to train and how.
        data: Prepared log-mels.
        out: The run's folder.
        noise: Prepared noise, if the recipe uses it.
        features: A folder of stored features, where the recipe learns from them.
        minutes: Choose the number of steps so that the run takes about this long here; the recipe's
            length is then ignored.
        force: Continue the run in ``out`` although it was begun with other settings.
        **options: Those of :class:`TrainOptions`.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: ``out`` holds another run, the data has another front end, or the processes cannot share
            a batch.
        WorkFailedError: The loss became infinite, not a number, or far too large; a step did not fit into
            the device's memory; a state could not be written; or the data could no longer be read.
        StoppedError: SIGTERM came; the state is saved.
    """
    processes, settings, run = init_distributed(), TrainOptions(**options), RunFolder(out)
    with (
        processes.abort_all_on_error(),
        StopRequest(processes).heard() as stop,
        lock_run(run, processes),
        report_io_errors(out),
    ):
        return _train(
            run, recipe, data, noise, features, processes, stop, settings, minutes=minutes, force=force
        )


def _train(
    run: RunFolder,
    recipe: Recipe,
    data: LogMelData,
    noise: LogMelData | None,
    features: Path | None,
    processes: Processes,
    stop: StopRequest,
    settings: TrainOptions,
    *,
    minutes: float | None,
    force: bool,
) -> Path:
    out = run.folder
    require_frontend(data, recipe.frontend)

    # The device, and what it computes in.
    share = processes.share(recipe.batch_size)
    device = processes.run_everywhere(lambda: process_device(processes, settings.device))
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if native_bfloat16(device) else "float32"
    dtype = torch.float64 if precision == "float64" else torch.float32

    # The data.
    items = training_items(recipe, data, noise=noise, features=features)
    target = items[0, 0].get("target") if recipe.offline.source in ("labels", "features") else None

    probes = processes.run_everywhere(
        lambda: Probes(
            settings.probes,
            sample_rate=recipe.sample_rate,
            epoch=len(data) // recipe.batch_size,
            read=processes.is_main,
        )
    )
    check_trackers(settings.track)

    # The state of an earlier call.
    states = States(out, keep_last=settings.keep_last, keep_every=settings.keep_every)
    newest: list[tuple[int, dict[str, Tensor]]] = []
    processes.run_on_main(lambda: newest.append(states.newest()))
    first = processes.run_on_main(lambda: newest[0][0])

    # The network and its optimizer.
    def trainer(objective: Objective) -> Trainer:
        return Trainer(
            objective, recipe, device=device, precision=precision, micro_batch_size=settings.micro_batch_size
        )

    recipe, objective, start = processes.run_everywhere(
        lambda: begin_objective(
            recipe,
            mean=data.mean,
            std=data.std,
            target_shape=None if target is None else tuple(target.shape),
            resumed=bool(first),
        )
    )
    objective.to(device, dtype)

    # How long: a run that is resumed keeps the number of steps that its minutes came to.
    known = processes.run_on_main(run.known)
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
        processes.run_on_main(
            lambda: run.changed(record, step=first, force=force)
        )  # before minutes of timing
        # No reference to the copy may remain: it is a second network, whose memory training needs.
        steps = steps_within(minutes * 60, trainer(copy.deepcopy(objective)), recipe, processes)
        gc.collect()  # compiled blocks refer to themselves
    record["steps"] = steps
    changed = processes.run_on_main(lambda: run.changed(record, step=first, force=force))
    if not changed and processes.run_on_main(run.checkpoint.exists):
        processes.log_once("%s is already trained for %d steps", out, steps)
        return run.checkpoint
    training = trainer(objective)
    if first:
        tensors = processes.broadcast(newest.pop()[1] if newest else {})
        processes.run_everywhere(lambda: states.load(objective, training.optimizer, first, tensors))
        del tensors
        processes.log_once("continuing %s at step %d of %d", out, first, steps)
    for name, (before, now) in changed.items():
        processes.log_once("%s was %r, and is %r from here on", name, before, now)
    if first and first < steps and "steps" in changed:
        before = int(changed["steps"][0])
        processes.log_once(
            "the schedules now stretch over %d steps: after step %d the learning rate goes from %.3g to %.3g",
            steps, first, learning_rate(recipe, first, before), learning_rate(recipe, first, steps),
        )  # fmt: skip
    processes.run_on_main(lambda: run.begin(record, changed, step=first, start=start))
    first_loss, probed = processes.run_on_main(lambda: run.cut_log(first or -1))
    processes.log_once(
        "%s: %d clips (%.2f h), %d steps of %d clips, %s on %s, %d processes, learning rate %.3g",
        recipe.objective, len(data), data.hours, steps, recipe.batch_size, precision, device.type,
        processes.count, recipe.learning_rate,
    )  # fmt: skip
    if short := data.count_shorter(recipe.frames):
        processes.log_once("%d clips are shorter than a crop and are padded with the mean", short)

    if recipe.offline.source == "labels" and (bare := data.count_unlabeled()):
        processes.log_once("%d clips have no label and count as clips of none of the classes", bare)

    # Meters, trackers and probes.
    trackers = None
    if processes.is_main:
        trackers = Trackers(out, settings.track, recipe.to_json(), step=first)
    if probes.wanted and processes.is_main:
        logger.info(probes.describe())
    operations = step_operations(recipe, objective)
    matrix_rate = MatrixRate(device, precision)

    def matrix_share(clips_per_s: float) -> float | None:
        """Return the share of the matrix rate, or None where a measurement contradicts it."""
        best = processes.mean([torch.tensor(matrix_rate.best)])[0] * processes.count
        value = clips_per_s * operations / best
        return value if value <= 1 else None

    def measure_rate() -> None:
        before, now = processes.run_everywhere(matrix_rate.measure)
        if before and abs(now / before - 1) > RATE_MOVED:
            processes.log_once(
                "the matrix rate went from %.0f to %.0f GFLOP/s (other work on this machine, or another "
                "clock speed); shares refer to the highest rate of the run, %.0f GFLOP/s",
                before / 1e9, now / 1e9, matrix_rate.best / 1e9,
            )  # fmt: skip

    def log(line: dict[str, Any]) -> None:
        run.log(line)
        assert trackers is not None
        trackers.log(line)

    def ask(step: int) -> float:
        """Probe after a number of steps, and return the seconds that it took."""
        start = time.perf_counter()
        if probes.due(step, steps):
            processes.run_on_main(lambda: probe(step))
        return time.perf_counter() - start

    def probe(step: int) -> None:
        stop.run_interruptible(
            lambda: log(probes.ask(objective, recipe, mean=data.mean, std=data.std, step=step))
        )

    def save(step: int) -> None:
        processes.run_on_main(run.sync_log)  # a run continued from this state has the lines before it
        processes.run_on_main(lambda: states.save(objective, training.optimizer, step))

    def steps_from(begin: int, end: int) -> StepBatches:
        return StepBatches(begin, end, batch_size=recipe.batch_size, n_clips=len(data), seed=recipe.seed)

    stream = batches(
        items,
        steps_from(first, steps),
        share=share,
        patches=math.prod(recipe.encoder.grid),
        device=device,
        dtype=dtype,
        workers=(4 if device.type == "cuda" else 0) if settings.workers is None else settings.workers,
    )
    objective.train()
    if first not in probed:  # the start of a run, or a probe that SIGTERM interrupted
        ask(first)
    clock, waited, logged, ready = time.perf_counter(), 0.0, first, time.perf_counter()
    checked = first  # the loss of the steps before was finite
    bar = ProgressBar(
        total=steps,
        initial=first,
        unit="step",
        disable=not (settings.progress and processes.is_main),
    )
    # Loader processes end with the steps, not with the program.
    with bar, report_data_errors(out), closing(stream):
        for step in range(first, steps):
            if stop.asked():
                stream.close()
                if step > first and step not in states.steps():
                    save(step)
                raise StoppedError(
                    f"stopped by SIGTERM after {step} of {steps} steps: the same command continues {out}"
                )
            batch = next(stream)
            waited += time.perf_counter() - ready
            rate = learning_rate(recipe, step, steps)
            done = step + 1
            logs = done % settings.log_every == 0 or done == steps
            result = training.step(batch, rate=rate, with_metrics=logs)
            # After the optimizer, so that the target follows the updated network.
            decay = momentum_decay(step, total=steps, start=recipe.momentum_start, end=recipe.momentum_end)
            objective.momentum_update(decay)

            bar.update()
            saves = done % settings.save_every == 0 and done < steps
            if logs or saves:  # the only place that waits for the device
                line = {"step": done, "lr": rate, **_read(result, processes)}
                _check(line, first_loss, states, partial(items.find_non_finite, steps_from(checked, done)))
                checked = done
            if logs:
                first_loss = first_loss or line["loss"]
                if recipe.objective == "m2d":
                    line["momentum"] = decay
                seconds = time.perf_counter() - clock
                line["clips_per_s"] = (done - logged) * recipe.batch_size / seconds
                line["data_wait"] = waited / seconds
                if processes.run_on_main(matrix_rate.due):  # after a step: a GPU's clocks are up
                    measure_rate()
                if (value := matrix_share(line["clips_per_s"])) is not None:
                    line["share"] = value
                if processes.is_main:
                    log(line)
                bar.note(f"loss={line['loss']:.4f}, {line['clips_per_s']:.0f} clips/s")
                clock, waited, logged = time.perf_counter(), 0.0, done
            if saves:
                save(done)
            clock += ask(done)
            ready = time.perf_counter()
    if trackers is not None:
        trackers.finish()

    # The result is written last: it exists only if the run is complete.
    def finish() -> None:
        states.save(objective, training.optimizer, steps)
        run.save_objective(objective, record)
        summary = {"steps": steps, "seed": recipe.seed, "data": record["data"], "precision": precision}
        model = hear_model(objective, recipe, mean=data.mean, std=data.std, training=summary)
        save_checkpoint(run.checkpoint, model)

    processes.run_on_main(finish)
    return run.checkpoint


def _read(result: Step, processes: Processes) -> dict[str, Any]:
    """Return a step's scalars, means over the processes."""
    values = {"loss": result.loss, **result.meters, "grad_norm": result.norm}
    return dict(zip(values, processes.mean(list(values.values())), strict=True))


def _check(
    line: dict[str, Any], first_loss: float | None, states: States, bad_clip: Callable[[], str]
) -> None:
    """Stop a run whose loss is not finite, or far above its first one."""
    loss, norm = line["loss"], line["grad_norm"]
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite and loss <= DIVERGED * (first_loss or math.inf):
        return
    # A cosine loss is at most 4 and cannot diverge: its collapse shows in the meters of the target.
    if not finite and (clip := bad_clip()):
        raise WorkFailedError(f"{clip} has values that are not finite: copy or prepare the data again")
    began = f", {first_loss:.3g} at the first line of the log" if first_loss else ""
    raise WorkFailedError(
        f"the loss is {loss:.3g} and the gradient {norm:.3g} at step {line['step']}{began}: the run stopped; "
        f"{states.kept()}. Try a smaller optimizer.base_lr"
    )
