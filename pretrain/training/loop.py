"""A pretraining run, from start to end.

Weights, crops and masks are functions of (seed, step), so that an interrupted run continues with the same
result. Only weights, optimizer moments and the step are stored.
"""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
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
from hear_m2d.pretrain.objectives.build import hear_model
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.distributed import (
    Processes,
    StoppedError,
    StopRequest,
    init_distributed,
    process_device,
)
from hear_m2d.pretrain.training.estimate import operations_per_clip, run_precision
from hear_m2d.pretrain.training.metrics import MatrixRate
from hear_m2d.pretrain.training.pace import steps_of_epochs, steps_within
from hear_m2d.pretrain.training.probes import Probes, ProbeSettings
from hear_m2d.pretrain.training.run_folder import RunFolder
from hear_m2d.pretrain.training.schedules import learning_rate, momentum_decay
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import Trainer
from hear_m2d.pretrain.training.trackers import Trackers, check_trackers
from hear_m2d.pretrain.training.warm_start import begin_objective
from hear_m2d.utils.errors import WorkFailedError
from hear_m2d.utils.files import lock_folder, remove_leftovers
from hear_m2d.utils.progress import ProgressBar

DIVERGED = 10.0  # a run stops if its loss exceeds the first one of the log by this factor
RATE_MOVED = 0.2  # relative change of the matrix rate that is logged


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a run on this machine, which do not change the trained weights."""

    device: str = "auto"  # or cpu, cuda, …
    log_every: int = 10  # steps between two lines of the log
    save_every: int = 500  # steps between two saves of the training state
    keep_last: int = 2  # how many of the newest states to keep
    keep_every: int = 0  # states at multiples of this number of steps are never removed; 0: all may be
    workers: int | None = None  # loader processes of each training process; None: 4 for a GPU, 0 for a CPU
    micro_batch_size: int = 0  # maximum clips in one forward pass; 0: on a GPU as many as fit, on a CPU all
    progress: bool = False  # show a progress bar
    probes: ProbeSettings = field(default_factory=ProbeSettings)  # labeled sets, probed during the run
    track: tuple[Any, ...] = ()  # accelerate's trackers: names, or instances of its GeneralTracker


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
        force: Continue the run in ``out`` even if it was started with other settings.
        **options: Those of :class:`TrainOptions`.

    Returns:
        The checkpoint's path.

    Raises:
        InputError: ``out`` holds another run, the data has another front end, or the batch cannot be divided
            among the processes.
        WorkFailedError: The loss became infinite, not a number, or far too large; a step did not fit into
            the device's memory; a state could not be written; or the data could no longer be read.
        StoppedError: SIGTERM came; the state is saved.
    """
    processes, run = init_distributed(), RunFolder(out)
    with processes.abort_all_on_error(), StopRequest(processes).heard() as stop, ExitStack() as locks:
        processes.run_on_main(run.known)  # another folder is refused and not changed
        processes.run_on_main(lambda: locks.enter_context(lock_folder(out)))
        processes.run_on_main(lambda: remove_leftovers(out))
        settings = TrainOptions(**options)
        return _train(run, recipe, data, noise, features, processes, stop, settings, minutes, force)


def _train(
    run: RunFolder,
    recipe: Recipe,
    data: LogMelData,
    noise: LogMelData | None,
    features: Path | None,
    processes: Processes,
    stop: StopRequest,
    settings: TrainOptions,
    minutes: float | None,
    force: bool,
) -> Path:
    out = run.folder
    require_frontend(data, recipe.frontend)

    # The device, and what it computes in.
    share = processes.share(recipe.batch_size)
    device = processes.run_everywhere(lambda: process_device(processes, settings.device))
    precision = run_precision(recipe, device)
    dtype = torch.float64 if precision == "float64" else torch.float32

    # The data, and the labeled sets to probe with.
    items = training_items(recipe, data, noise=noise, features=features)
    target = items[0, 0].get("target") if recipe.offline.source in ("labels", "features") else None
    epoch = len(data) // recipe.batch_size
    probes = processes.run_everywhere(
        lambda: Probes(settings.probes, sample_rate=recipe.sample_rate, epoch=epoch, read=processes.is_main)
    )
    check_trackers(settings.track)

    # The state of an earlier call, the network and its optimizer.
    states = States(out, keep_last=settings.keep_last, keep_every=settings.keep_every)
    newest, state = processes.run_everywhere(lambda: states.newest() if processes.is_main else (0, {}))
    first = processes.run_on_main(lambda: newest)
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
    make_trainer = partial(
        Trainer, recipe=recipe, device=device, precision=precision, micro_batch_size=settings.micro_batch_size
    )

    # The number of steps: a resumed run keeps the number that was computed from its minutes.
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
    else:  # refuse another run before the timing, which takes minutes
        processes.run_on_main(lambda: run.changed(record, step=first, force=force))
        # No reference to the copy may remain: training needs the memory of this second network.
        steps = steps_within(minutes * 60, make_trainer(copy.deepcopy(objective)), recipe, processes)
        gc.collect()  # compiled blocks refer to themselves
    record["steps"] = steps
    changed = processes.run_on_main(lambda: run.changed(record, step=first, force=force))
    if not changed and processes.run_on_main(run.checkpoint.exists):
        processes.log_once("%s is already trained for %d steps", out, steps)
        return run.checkpoint

    # The start, from the saved state if there is one.
    training = make_trainer(objective)
    if first:
        state = processes.broadcast(state)
        processes.run_everywhere(partial(states.load, objective, training.optimizer, first, state))
        processes.log_once("continuing %s at step %d of %d", out, first, steps)
    del state
    for name, (before, now) in changed.items():
        processes.log_once("%s was %r, and is %r from now on", name, before, now)
    if first and first < steps and "steps" in changed:
        rates = [learning_rate(recipe, first, length) for length in (int(changed["steps"][0]), steps)]
        processes.log_once(
            "the schedules now cover %d steps: after step %d the learning rate changes from %.3g to %.3g",
            steps, first, *rates,
        )  # fmt: skip
    processes.run_on_main(lambda: run.begin(record, changed, first, start))
    first_loss, probed = processes.run_on_main(lambda: run.cut_log(first or -1))
    processes.log_once(
        "%s: %d clips (%.2f h), %d steps of %d clips, %s on %s, %d processes, learning rate %.3g",
        recipe.objective, len(data), data.hours, steps, recipe.batch_size, precision, device.type,
        processes.count, recipe.learning_rate,
    )  # fmt: skip
    if short := int((data.lengths < recipe.frames).sum()):
        processes.log_once("%d clips are shorter than a crop and are padded with the mean", short)
    labeled = recipe.offline.source == "labels"
    if labeled and (bare := sum(not data.label(clip) for clip in range(len(data)))):
        processes.log_once("%d clips have no label: they are used as clips without any class", bare)
    if probes.wanted:
        processes.log_once("%s", probes.describe())

    # Trackers and meters.
    trackers = Trackers(out, settings.track, recipe.to_json(), step=first) if processes.is_main else None
    teacher = getattr(objective, "teacher", None)
    operations = operations_per_clip(recipe, teacher and teacher.encoder.config)
    matrix_rate = MatrixRate(device, precision)

    def log(line: dict[str, Any]) -> None:
        if trackers is not None:
            run.log(line)
            trackers.log(line)

    def measure_rate() -> None:
        before, now = processes.run_everywhere(matrix_rate.measure)
        if before and abs(now / before - 1) > RATE_MOVED:
            processes.log_once(
                "the matrix rate changed from %.0f to %.0f GFLOP/s (other work on this machine, or another "
                "clock speed); shares refer to the highest rate of the run, %.0f GFLOP/s",
                before / 1e9, now / 1e9, matrix_rate.best / 1e9,
            )  # fmt: skip

    def probe(step: int) -> float:
        """Probe if a probe is due, and return the seconds that it took."""
        begun = time.perf_counter()
        if probes.due(step, steps):
            run_probes = partial(probes.run, objective, recipe, mean=data.mean, std=data.std, step=step)
            processes.run_on_main(lambda: stop.run_interruptible(lambda: log(run_probes())))
        return time.perf_counter() - begun

    def save(step: int) -> None:
        processes.run_on_main(run.sync_log)  # so that a run continued from this state has the lines before it
        processes.run_on_main(lambda: states.save(objective, training.optimizer, step))

    steps_from = partial(StepBatches, batch_size=recipe.batch_size, n_clips=len(data), seed=recipe.seed)
    stream = batches(
        items,
        steps_from(first, steps),
        share=share,
        patches=math.prod(recipe.encoder.grid),
        device=device,
        dtype=dtype,
        workers=(4 if device.type == "cuda" else 0) if settings.workers is None else settings.workers,
    )
    show_bar = settings.progress and processes.is_main
    bar = ProgressBar(total=steps, initial=first, unit="step", disable=not show_bar)
    objective.train()
    # Loader processes end after the last step, not at the end of the program.
    with run.report_io_errors(), bar, closing(stream):
        if first not in probed:  # the start of a run, or a probe that SIGTERM interrupted
            probe(first)
        clock, waited, logged, ready = time.perf_counter(), 0.0, first, time.perf_counter()
        checked = first  # the loss of all earlier steps was finite
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
            saves = done % settings.save_every == 0 and done < steps
            result = training.step(batch, rate=rate, with_metrics=logs)
            # After the optimizer, so that the target follows the updated network.
            decay = momentum_decay(step, total=steps, start=recipe.momentum_start, end=recipe.momentum_end)
            objective.momentum_update(decay)

            bar.update()
            if logs or saves:  # the only line that waits for the device
                scalars = {"loss": result.loss, **result.meters, "grad_norm": result.norm}
                means = processes.mean(list(scalars.values()))
                line = {"step": done, "lr": rate, **dict(zip(scalars, means, strict=True))}
                _check(line, first_loss, states, partial(items.find_non_finite, steps_from(checked, done)))
                checked = done
            if logs:
                first_loss = first_loss or line["loss"]
                if recipe.objective == "m2d":
                    line["momentum"] = decay
                seconds = time.perf_counter() - clock
                line["clips_per_s"] = (done - logged) * recipe.batch_size / seconds
                line["data_wait"] = waited / seconds
                if processes.run_on_main(matrix_rate.due):  # after a step: a GPU is at full clock then
                    measure_rate()
                best = processes.mean([torch.tensor(matrix_rate.best)])[0] * processes.count
                if (used := line["clips_per_s"] * operations / best) <= 1:  # or a measurement contradicts it
                    line["share"] = used
                log(line)
                bar.note(f"loss={line['loss']:.4f}, {line['clips_per_s']:.0f} clips/s")
                clock, waited, logged = time.perf_counter(), 0.0, done
            if saves:
                save(done)
            clock += probe(done)
            ready = time.perf_counter()

        # The result is written last: it exists only if the run is complete.
        def finish() -> None:
            states.save(objective, training.optimizer, steps)
            run.save_objective(objective, record)
            summary = {"steps": steps, "seed": recipe.seed, "data": record["data"], "precision": precision}
            model = hear_model(objective, recipe, mean=data.mean, std=data.std, training=summary)
            save_checkpoint(run.checkpoint, model)

        if trackers is not None:
            trackers.finish()
        processes.run_on_main(finish)
    return run.checkpoint


def _check(
    line: dict[str, Any], first_loss: float | None, states: States, bad_clip: Callable[[], str]
) -> None:
    """Stop a run whose loss is not finite, or much higher than its first loss."""
    loss, norm = line["loss"], line["grad_norm"]
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite and loss <= DIVERGED * (first_loss or math.inf):
        return
    # A cosine loss is at most 4 and cannot diverge: a collapse is visible in the meters of the target.
    if not finite and (clip := bad_clip()):
        raise WorkFailedError(f"{clip} has values that are not finite: copy or prepare the data again")
    began = f", {first_loss:.3g} at the first line of the log" if first_loss else ""
    raise WorkFailedError(
        f"the loss is {loss:.3g} and the gradient {norm:.3g} at step {line['step']}{began}: the run stopped; "
        f"{states.kept()}. Try a smaller optimizer.base_lr"
    )
