"""One fine-tuning run (one seed, one fold), from top to bottom.

Crops, mixtures, stripes and dropped patches are functions of (seed, step), so that an interrupted run
continues from its last state as if nothing had happened.

run.json                  what this run is
metrics.jsonl             one line per epoch
state-<step>.safetensors  weights, optimizer and step, to continue from
best.safetensors          the classifier of the best epoch
checkpoint.safetensors    the classifier of the last epoch
result.json               both scores; it exists only if the run is complete
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.evaluation.finetune.augment import mask_stripes, mix, mix_log_mels, mixup_shares, resize_crop
from hear_m2d.evaluation.finetune.data import Waveforms, epoch_batches, rarity_weights
from hear_m2d.evaluation.finetune.network import FinetuneNetwork, make_network
from hear_m2d.evaluation.finetune.recipe import FinetuneRecipe
from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.probes import rows_of, score, targets
from hear_m2d.pretrain.training.distributed import Processes, StoppedError, StopRequest
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.training.step import make_accelerator
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import (
    atomic_write_text,
    claim_folder,
    lock_folder,
    read_json,
    remove_leftovers,
    write_json,
)

logger = logging.getLogger(__name__)

MIN_RATE = 1e-7
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class RunSplits:
    """Rows of the clips that train, choose the best epoch, and test.

    Attributes:
        fold: Name of the test split.
        train: Rows.
        select: Rows that choose the best epoch.
        test: Rows.
        selected_on: ``valid``, or ``test`` where there is no validation split, as in the published figures.
    """

    fold: str
    train: NDArray[np.intp]
    select: NDArray[np.intp]
    test: NDArray[np.intp]
    selected_on: str


def run_splits(labeled: LabeledSet) -> list[RunSplits]:
    """Return the splits of each run of a set: one, or one for each fold."""
    if labeled.splits != "folds":
        train, valid, test = (rows_of(labeled, [name]) for name in ("train", "valid", "test"))
        on_test = not len(valid)
        return [RunSplits("test", train, test if on_test else valid, test, "test" if on_test else "valid")]
    folds = []
    for fold in labeled.folds:
        test = rows_of(labeled, [fold])
        train = rows_of(labeled, [other for other in labeled.folds if other != fold])
        folds.append(RunSplits(fold, train, test, test, "test"))
    return folds


def learning_rate(recipe: FinetuneRecipe, epoch: float) -> float:
    """Return the rate at a (fractional) epoch: linear from 0, then a cosine that spans all epochs."""
    if epoch < recipe.warmup_epochs:
        return recipe.learning_rate * epoch / recipe.warmup_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    return MIN_RATE + (recipe.learning_rate - MIN_RATE) * cosine


def make_optimizer(network: torch.nn.Module, recipe: FinetuneRecipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over what is trained."""
    from timm.optim.lars import Lars

    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "lars":
        lars: torch.optim.Optimizer = Lars(learned, lr=rate, momentum=0.9, weight_decay=decay)
        return lars
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.95), weight_decay=decay, amsgrad=True)
    return torch.optim.SGD(learned, lr=rate, momentum=0.9, weight_decay=decay)


def finetune_run(
    out: Path,
    labeled: LabeledSet,
    splits: RunSplits,
    recipe: FinetuneRecipe,
    *,
    seed: int,
    model_path: str,
    device: torch.device,
    tick: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Fine-tune one network, or continue the run in ``out``, or return its result.

    Args:
        out: The run's folder.
        labeled: The clips.
        splits: Which clips train, choose and test.
        recipe: How to train.
        seed: Of the head, the order and all augmentation.
        model_path: What ``load_model`` takes.
        device: Where to train.
        tick: Called with the number of steps done.

    Returns:
        ``seed``, ``fold``, ``selected_on``, ``metric``; of the ``last`` and ``best`` epoch the test score.

    Raises:
        InputError: ``out`` holds another run, or the checkpoint or a file cannot be used.
        WorkFailedError: The loss is no longer finite, or a state cannot be written.
        StoppedError: SIGTERM came; the state is saved.
    """
    record = {
        **{name: value for name, value in recipe.to_json().items() if name != "description"},
        "seed": seed,
        "fold": splits.fold,
        "model": str(model_path),
        "data": {"set": labeled.name, "train": len(splits.train), "test": len(splits.test)},
    }
    stop = StopRequest(Processes())
    with lock_folder(out), stop.heard():
        remove_leftovers(out)
        is_new = not (out / "run.json").exists()
        claim_folder(out, "run.json", record)
        if (out / "result.json").exists():
            return read_json(out / "result.json")
        try:
            run = _Run(out, labeled, splits, recipe, seed, model_path, device)
        except InputError:
            if is_new:  # a refused recipe does not hold the folder against the corrected one
                (out / "run.json").unlink()
            raise
        return run.train(stop, tick or (lambda count: None))


class _Run:
    """The state of a run in memory."""

    def __init__(
        self,
        out: Path,
        labeled: LabeledSet,
        splits: RunSplits,
        recipe: FinetuneRecipe,
        seed: int,
        model_path: str,
        device: torch.device,
    ) -> None:
        self.out, self.labeled, self.splits, self.recipe, self.seed = out, labeled, splits, recipe, seed
        self.device = device
        network = make_network(model_path, recipe, labeled.classes, seed=seed)
        self.network: FinetuneNetwork = network.to(device)
        self.optimizer = make_optimizer(network, recipe)
        self.y = targets(labeled)
        classes = len(labeled.classes)
        several = self.y.ndim == 2
        self.hot = (
            torch.from_numpy(self.y).float()
            if several
            else F.one_hot(torch.from_numpy(self.y), classes).float()
        )
        self.waves = Waveforms(labeled, network.model.sample_rate, clip_samples(network, labeled), seed)
        self.weights = (
            rarity_weights(self.hot[splits.train].long().numpy()) if recipe.sampler == "weighted" else None
        )
        self.steps_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[NDArray[np.intp]]:
        return epoch_batches(
            self.splits.train,
            self.recipe.batch_size,
            seed=self.seed,
            epoch=epoch,
            weights=self.weights,
            count=self.recipe.epoch_clips,
        )

    def train(self, stop: StopRequest, tick: Callable[[int], object]) -> dict[str, Any]:
        recipe, per_epoch = self.recipe, self.steps_per_epoch
        states = States(self.out)
        first = self._load(states)
        lines = _cut_log(self.out / "metrics.jsonl", first)
        tick(first)
        accelerator = make_accelerator(self.device)
        stepper, optimizer = accelerator.prepare(self.network, self.optimizer)
        step = first
        for epoch in range(first // per_epoch, recipe.epochs):
            batches = self._epoch(epoch)[step - epoch * per_epoch :]
            losses = []
            self.network.train()
            rows_and_waves = zip(batches, self.waves.batches(batches, epoch), strict=True)
            for rows, waves in rows_and_waves:
                if stop.asked():
                    states.save(self.network, self.optimizer, step)  # type: ignore[arg-type]
                    raise StoppedError(
                        f"stopped by SIGTERM at step {step}: the same command continues {self.out}"
                    )
                rng = np.random.default_rng([self.seed, 1, step])
                x, target = self._augmented(waves.to(self.device), self.hot[rows].to(self.device), rng)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step / per_epoch)
                optimizer.zero_grad()
                loss = soft_loss(stepper(x, rng), target, several=self.y.ndim == 2)
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.detach())
                step += 1
                tick(1)
            mean_loss = torch.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                raise WorkFailedError(
                    f"the loss is {mean_loss} in epoch {epoch + 1} of {self.out}: try a smaller learning_rate"
                )
            value = self._score(self.splits.select)
            if value > max((float(known["score"]) for known in lines), default=-1.0):
                self._save("best.safetensors", epoch + 1)
            line = {"step": step, "epoch": epoch + 1, "loss": mean_loss, "score": value}
            lines.append(line)
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            states.save(self.network, self.optimizer, step)  # type: ignore[arg-type]
        return self._finish(states, lines)

    def _load(self, states: States) -> int:
        """Continue from the newest state that can be read, and return its step."""
        for step in reversed(states.steps()):
            try:
                states.load(self.network, self.optimizer, step)  # type: ignore[arg-type]
            except ValueError as error:
                logger.warning("%s: using the state before it", error)
            else:
                return step
        return 0

    def _augmented(self, waves: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the standardized, augmented log-mels, (clips, 1, mels, frames), and their targets."""
        recipe = self.recipe
        model = self.network.model
        shares, partner = torch.ones(0), torch.zeros(0)
        if recipe.mixup:
            shares, partner = mixup_shares(len(waves), recipe.mixup, rng)
            target = mix(target, target[partner], shares)
            if recipe.mixup_on == "waveform":
                waves = mix(waves, waves[partner], shares)
        logmel = model.frontend(waves)
        if recipe.mixup and recipe.mixup_on == "log_mel":
            logmel = mix_log_mels(logmel, logmel[partner], shares)
        x = ((logmel - model.config.mean) / model.config.std)[:, None]
        x = mask_stripes(x, recipe.frequency_mask, recipe.time_mask, rng)
        return (resize_crop(x, rng) if recipe.resize_crop else x), target

    @torch.no_grad()
    def _score(self, rows: NDArray[np.intp]) -> float:
        """Return the accuracy or mAP of clips."""
        model = self.network.model
        self.network.eval()
        batches = [rows[start : start + EVALUATION_BATCH] for start in range(0, len(rows), EVALUATION_BATCH)]
        logits = []
        for waves in self.waves.batches(batches, None):
            x = (model.frontend(waves.to(self.device)) - model.config.mean) / model.config.std
            logits.append(self.network(x[:, None]).float().cpu())
        answer = torch.cat(logits).numpy()
        return score(self.y[rows], answer.argmax(1) if self.y.ndim == 1 else answer)

    def _save(self, name: str, epoch: int) -> None:
        model = self.network.model
        note = {"set": self.labeled.name, "fold": self.splits.fold, "seed": self.seed, "epoch": epoch}
        before = model.config
        model.config = replace(before, training={**before.training, "finetuned": note})
        save_checkpoint(self.out / name, model)
        model.config = before

    def _finish(self, states: States, lines: list[dict[str, Any]]) -> dict[str, Any]:
        best = max(lines, key=lambda line: line["score"])  # of equal scores the first
        last_score = self._score(self.splits.test)
        self._save("checkpoint.safetensors", self.recipe.epochs)
        best_score = best["score"]
        if self.splits.selected_on != "test":
            import hear_m2d

            chosen = hear_m2d.load_model(self.out / "best.safetensors").to(self.device)
            self.network = FinetuneNetwork(chosen, self.recipe)
            best_score = self._score(self.splits.test)
        result = {
            "seed": self.seed,
            "fold": self.splits.fold,
            "metric": self.labeled.metric,
            "selected_on": self.splits.selected_on,
            "last": {"epoch": self.recipe.epochs, "score": last_score},
            "best": {"epoch": best["epoch"], "score": best_score, "selection_score": best["score"]},
        }
        write_json(self.out / "result.json", result)
        for step in states.steps():  # they are large, and not needed any more
            states.path(step).unlink()
        return result


def clip_samples(network: FinetuneNetwork, labeled: LabeledSet) -> int:
    """Return the samples of every clip: the recipe's length, or the set's, or that of the model's input."""
    config = network.model.config
    seconds = network.recipe.unit_s or labeled.unit_s
    if seconds is not None:
        return round(seconds * config.frontend.sample_rate)
    return config.encoder.input_size[1] * config.frontend.hop_length


def soft_loss(logits: Tensor, target: Tensor, *, several: bool) -> Tensor:
    """Return the published loss for targets that mixup made soft: a mean over clips and classes.

    Args:
        logits: (clips, classes).
        target: Between 0 and 1, of the same shape.
        several: Whether a clip may have several labels: then binary cross-entropy, else cross-entropy.
    """
    if several:
        return F.binary_cross_entropy_with_logits(logits, target)
    return -(target * logits.log_softmax(1)).mean()


def _cut_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after a step, which a continued run writes again, and return the others."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # cut short when the process was killed
            continue
        if entry["step"] <= step:
            kept.append(entry)
    if path.exists():
        atomic_write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept
