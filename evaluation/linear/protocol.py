"""The M2D papers' linear evaluation of frozen embeddings: one linear layer, three seeds, all folds.

Source: the protocol of M2D (Niizumi et al., 2023) as the public evaluation package EVAR runs it: features
standardized on the training split, Adam at a constant rate, batches of 200, at most 200 epochs, the weights
of the best validation score, seeds 42, 43, 44. The 95 % interval over the seeds is ours: Student's t.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.probes import check_embeddings, rows_of, score, targets

logger = logging.getLogger(__name__)

SEEDS = (42, 43, 44)
M2D_RATE, OTHER_RATE = 3e-5, 3e-4
HOLD_OUT, DRAWS = 0.1, 100


@dataclass(frozen=True)
class LinearSettings:
    """The published settings.

    Attributes:
        learning_rate: Adam's, constant: 3e-5 for M2D, 3e-4 for MSM-MAE and any other model.
        seeds: Of the weights, the order of the clips and the hold-out.
        batch_size: Clips per step; fewer where there are fewer.
        epochs: At most.
        patience: Epochs without reaching the best validation score, after which training stops.
        weight_decay: Adam's L2 penalty.
    """

    learning_rate: float = OTHER_RATE
    seeds: tuple[int, ...] = SEEDS
    batch_size: int = 200
    epochs: int = 200
    patience: int = 20
    weight_decay: float = 1e-8


@dataclass(frozen=True)
class LinearResult:
    """The scores of one set, all between 0 and 1.

    Attributes:
        task: The set's name.
        metric: ``accuracy`` or ``mAP``.
        score: Mean over the seeds.
        ci95: Half width of the 95 % interval over the seeds (Student's t); None with one seed.
        runs: One object per seed: ``seed``, ``score`` (mean over folds) and ``folds``, each with its name,
            score, validation score and epochs.
        notes: Sentences about decisions.
    """

    task: str
    metric: str
    score: float
    ci95: float | None
    runs: list[dict[str, Any]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def linear_evaluation(
    embeddings: NDArray[np.floating[Any]],
    labeled: LabeledSet,
    settings: LinearSettings,
    *,
    device: torch.device | str = "cpu",
    tick: Callable[[int], object] | None = None,
) -> LinearResult:
    """Run the linear evaluation of a set: every seed, every fold.

    Args:
        embeddings: (clips, features), in the set's order.
        labeled: The clips' labels and splits.
        settings: The published ones, or others.
        device: Where the layer is trained.
        tick: Called with 1 after each trained layer.

    Raises:
        InputError: Embeddings that are not finite, or not one per clip.
    """
    x, y, notes = check_embeddings(embeddings, labeled), targets(labeled), list(labeled.notes)
    runs: list[dict[str, Any]] = [{"seed": seed, "score": 0.0, "folds": []} for seed in settings.seeds]
    tests = labeled.folds if labeled.splits == "folds" else ["test"]
    for test in tests:
        if labeled.splits == "folds":
            train, valid = rows_of(labeled, [fold for fold in tests if fold != test]), None
        else:
            train, valid = rows_of(labeled, ["train"]), rows_of(labeled, ["valid"])
            valid = valid if len(valid) else None
        mean, scale = _statistics(x[train])
        parts = {
            "train": train,
            "test": rows_of(labeled, [test]),
            **({} if valid is None else {"valid": valid}),
        }
        data = {
            name: (_standardized(x[rows], mean, scale).to(device), _targets(y[rows]).to(device))
            for name, rows in parts.items()
        }
        for run in runs:
            fit_data = data
            if valid is None:
                kept, held, complete = hold_out(y[train], run["seed"])
                fit_data = {
                    "train": (data["train"][0][kept], data["train"][1][kept]),
                    "valid": (data["train"][0][held], data["train"][1][held]),
                }
                if not complete:
                    notes.append(f"in {DRAWS} draws, no validation part had every class: the last is used")
            layer, best, epochs = fit_linear(
                *fit_data["train"],
                *fit_data["valid"],
                settings=settings,
                seed=run["seed"],
                classes=len(labeled.classes),
            )
            found = _score(layer, *data["test"])
            run["folds"].append({"fold": test, "score": found, "valid_score": best, "epochs": epochs})
            logger.info("%s, seed %d, %s: %s %.4f", labeled.name, run["seed"], test, labeled.metric, found)
            if tick:
                tick(1)
    for run in runs:
        run["score"] = float(np.mean([fold["score"] for fold in run["folds"]]))
    scores = [run["score"] for run in runs]
    if labeled.splits == "folds" or "valid" not in labeled.folds:
        notes.append("validation: a random tenth of the training clips, for each seed")
    return LinearResult(
        task=labeled.name,
        metric=labeled.metric,
        score=float(np.mean(scores)),
        ci95=half_interval(scores),
        runs=runs,
        notes=tuple(dict.fromkeys(notes)),
    )


def fit_linear(
    x: Tensor,
    y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    *,
    settings: LinearSettings,
    seed: int,
    classes: int,
) -> tuple[torch.nn.Linear, float, int]:
    """Train one linear layer, and return it with the weights of its best epoch, that score, and the epochs.

    Of epochs with equal validation scores the last counts, as published.

    Args:
        x: Standardized training embeddings, (clips, features).
        y: Classes, (clips,) int64, or 0 and 1, (clips, classes) float32.
        valid_x: The same of the clips that choose the epoch.
        valid_y: Their targets.
        settings: How to train.
        seed: Of the weights and the order of the clips.
        classes: Outputs of the layer.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], classes)
    bound = 1 / math.sqrt(x.shape[1])  # nn.Linear's own initialization, from the seed alone
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    layer.to(x.device)
    optimizer = torch.optim.Adam(
        layer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    best, best_epoch, epoch = -1.0, 0, 0
    best_weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(x), generator=generator)
        for rows in torch.split(order, min(settings.batch_size, len(x))):
            picked = rows.to(x.device)
            optimizer.zero_grad()
            classifier_loss(layer(x[picked]), y[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if (value := _score(layer, valid_x, valid_y)) >= best:
            best, best_epoch = value, epoch
            best_weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    layer.load_state_dict(best_weights)
    return layer, best, epoch


def classifier_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the published loss: the mean over clips and classes of cross-entropy terms.

    One label per clip: cross-entropy divided by the number of classes. Several: binary cross-entropy.

    Args:
        logits: (clips, classes).
        y: Classes, (clips,) int64, or 0 and 1, (clips, classes).
    """
    if y.ndim == 1:
        return F.cross_entropy(logits, y) / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, y)


def hold_out(y: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor, bool]:
    """Return the rows that train, the rows of a random tenth, and whether every class is in that tenth.

    It is drawn up to 100 times until every class that occurs is in it.

    Args:
        y: Targets, (clips,) or (clips, classes).
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    present = set(y.tolist()) if y.ndim == 1 else set(np.flatnonzero(y.any(0)).tolist())
    count = max(1, round(HOLD_OUT * len(y)))
    for _ in range(DRAWS):
        order = torch.randperm(len(y), generator=generator)
        drawn = y[order[:count].numpy()]
        complete = (
            set(drawn.tolist()) if y.ndim == 1 else set(np.flatnonzero(drawn.any(0)).tolist())
        ) == present
        if complete:
            break
    return order[count:], order[:count], complete


def half_interval(scores: list[float]) -> float | None:
    """Return the half width of the 95 % confidence interval of a mean (Student's t); None of one score."""
    from scipy.stats import t

    if len(scores) < 2:
        return None
    return float(t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / math.sqrt(len(scores)))


def _statistics(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    return scaler.mean_, scaler.scale_


def _standardized(x: NDArray[Any], mean: NDArray[Any], scale: NDArray[Any]) -> Tensor:
    return torch.from_numpy(((x - mean) / scale).astype(np.float32))


def _targets(y: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(y) if y.ndim == 1 else torch.from_numpy(y).float()


@torch.no_grad()
def _score(layer: torch.nn.Linear, x: Tensor, y: Tensor) -> float:
    logits = layer(x)
    if y.ndim == 1:
        return float((logits.argmax(1) == y).double().mean())
    return score(y.long().cpu().numpy(), logits.cpu().numpy())
