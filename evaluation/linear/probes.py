"""Quick probes of frozen embeddings: nearest neighbours, and logistic regression on labelled clips.

They tell whether a network learns. The M2D papers' linear evaluation (their optimiser, their repeats) is
another thing, and so are the official HEAR scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hear_m2d.evaluation.linear.datasets import LabelledSet as LabelledSet
from hear_m2d.evaluation.linear.datasets import read_labelled as read_labelled
from hear_m2d.evaluation.linear.datasets import split_by_class

# Whoever probes needs all three, and finds them here.
from hear_m2d.evaluation.linear.embeddings import embed_task as embed_task
from hear_m2d.utils.errors import InputError

NEIGHBOURS = 10
TEMPERATURE = 0.07
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of scikit-learn's C, the strongest regularisation first
ROWS = 1024  # of a block of similarities

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Round:
    """Which clips train, choose and test, as indices; folds give several rounds."""

    train: Indices
    valid: Indices
    test: Indices


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of one set found.

    Attributes:
        task: The set's name.
        metric: ``accuracy``, or ``mAP``: mean over classes that the test holds of the average precision.
        knn: Score of the nearest neighbours, mean over folds; None where not asked for.
        linear: Score of the logistic regression, likewise.
        strength: The C that was chosen for it.
        clips: How many clips took part.
        classes: How many classes there are.
        splits: ``given``, ``folds`` or ``ours``.
        notes: Sentences on what was decided.
    """

    task: str
    metric: str
    knn: float | None
    linear: float | None
    strength: float | None
    clips: int
    classes: int
    splits: str
    notes: tuple[str, ...]


def probe(
    embeddings: NDArray[np.floating[Any]],
    labelled: LabelledSet,
    *,
    knn: bool = True,
    linear: bool = True,
    neighbours: int = NEIGHBOURS,
) -> ProbeResult:
    """Score embeddings on a labelled set.

    Both probes see embeddings that are standardised with the training clips' mean and deviation, feature by
    feature. The neighbours are those of all clips outside the test; where the splits are ours, every other
    clip is one. With folds each is the test once, the next one chooses C in the first round, as in HEAR.

    Args:
        embeddings: (clips, features), in the set's order.
        labelled: The clips' labels and splits.
        knn: Ask the nearest neighbours.
        linear: Train a logistic regression.
        neighbours: How many are asked; fewer where there are fewer.

    Raises:
        ValueError: Embeddings that are not finite, or not one a clip.
    """
    x = np.asarray(embeddings, np.float64)
    if x.ndim != 2 or len(x) != len(labelled.clips):
        raise InputError(f"{labelled.name}: {len(labelled.clips)} clips, and embeddings of shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError(f"{labelled.name}: the embeddings are not all finite")
    y = targets(labelled)
    found, strength, notes = rounds(labelled), None, list(labelled.notes)
    by_neighbours, by_regression = [], []
    if knn and labelled.splits == "ours":
        scores = neighbour_scores(standardised(x, x), y, count=neighbours)
        by_neighbours = [score(labelled.metric, scores, y)]
        notes.append("neighbours: leaving one out")
    for one in found:
        if knn and labelled.splits != "ours":
            others = np.concatenate([one.train, one.valid])
            scaled = standardised(x[others], x)
            scores = neighbour_scores(scaled[others], y[others], scaled[one.test], count=neighbours)
            by_neighbours.append(score(labelled.metric, scores, y[one.test]))
        if linear:
            strength = strength or _choose(x, y, one, labelled.metric)
            scores = regression_scores(x[one.train], y[one.train], x[one.test], strength=strength)
            by_regression.append(score(labelled.metric, scores, y[one.test]))
    return ProbeResult(
        task=labelled.name,
        metric=labelled.metric,
        knn=float(np.mean(by_neighbours)) if knn else None,
        linear=float(np.mean(by_regression)) if linear else None,
        strength=strength,
        clips=len(labelled.clips),
        classes=len(labelled.classes),
        splits=labelled.splits,
        notes=tuple(notes),
    )


def targets(labelled: LabelledSet) -> Array:
    """Return the labels as 0 and 1, (clips, classes)."""
    index = {name: number for number, name in enumerate(labelled.classes)}
    y = np.zeros((len(labelled.clips), len(labelled.classes)))
    for row, clip in enumerate(labelled.clips):
        y[row, [index[label] for label in clip.labels]] = 1
    return y


def rounds(labelled: LabelledSet) -> list[Round]:
    """Return what trains, chooses and tests, once or once a fold; where none choose, a fifth does."""

    def where(splits: Sequence[str]) -> Indices:
        return np.flatnonzero([clip.split in splits for clip in labelled.clips])

    folds = labelled.folds
    if labelled.splits == "folds":
        nexts = folds[1:] + folds[:1]
        return [
            Round(where([f for f in folds if f not in (test, valid)]), where([valid]), where([test]))
            for test, valid in zip(folds, nexts, strict=True)
        ]
    if "valid" in folds:
        return [Round(where(["train"]), where(["valid"]), where(["test"]))]
    split = split_by_class([clip for clip in labelled.clips if clip.split == "train"])
    chosen = {clip.name for clip in split if clip.split == "valid"}
    train = where(["train"])
    chooses = np.array([labelled.clips[row].name in chosen for row in train])
    return [Round(train[~chooses], train[chooses], where(["test"]))]


def standardised(reference: Array, x: Array) -> Array:
    """Return ``x`` with the reference's mean and deviation taken out; a constant feature stays constant."""
    spread = reference.std(0)
    result: Array = (x - reference.mean(0)) / np.where(spread > 1e-8 * np.abs(reference).max(), spread, 1.0)
    return result


def neighbour_scores(
    reference: Array, labels: Array, queries: Array | None = None, *, count: int = NEIGHBOURS
) -> Array:
    """Return each class's weight among the nearest reference clips, (queries, classes).

    A neighbour counts exp(cosine / 0.07), as in Wu et al., "Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination" (CVPR 2018).

    Args:
        reference: (clips, features).
        labels: Of the reference, 0 and 1, (clips, classes).
        queries: (queries, features); by default the reference itself, each clip without its own vote.
        count: How many neighbours vote.
    """
    alone = queries is None
    known, asked = _unit(reference), _unit(reference if queries is None else queries)
    count = min(count, len(known) - alone)
    found = np.zeros((len(asked), labels.shape[1]))
    for start in range(0, len(asked), ROWS):
        cosine = asked[start : start + ROWS] @ known.T  # (rows, clips)
        if alone:
            rows = np.arange(len(cosine))
            cosine[rows, start + rows] = -np.inf
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
        weights = np.exp(np.take_along_axis(cosine, nearest, 1) / TEMPERATURE)
        votes = np.einsum("rk,rkc->rc", weights, labels[nearest])
        found[start : start + ROWS] = votes / weights.sum(1, keepdims=True)
    return found


def _unit(x: Array) -> Array:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    result: Array = x / np.where(length > 0, length, 1.0)
    return result


def regression_scores(train: Array, labels: Array, test: Array, *, strength: float) -> Array:
    """Return logistic regression's score of each class, (test clips, classes).

    Args:
        train: (clips, features).
        labels: Of those, 0 and 1, (clips, classes); where each has one, the classes compete.
        test: (test clips, features).
        strength: scikit-learn's C.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen, asked = _in_their_span(standardised(train, train), standardised(train, test))
    found = np.zeros((len(asked), labels.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is nearly there will do
        if (labels.sum(1) == 1).all() and labels.any(0).sum() > 1:
            model = LogisticRegression(C=strength, max_iter=1000).fit(seen, labels.argmax(1))
            found[:, model.classes_] = model.predict_proba(asked)
            return found
        for number, column in enumerate(labels.T):
            if 0 < column.sum() < len(column):
                model = LogisticRegression(C=strength, max_iter=1000).fit(seen, column)
                found[:, number] = model.predict_proba(asked)[:, 1]
            else:  # nothing to tell apart
                found[:, number] = column[0]
    return found


def _in_their_span(train: Array, test: Array) -> tuple[Array, Array]:
    """Return the clips in coordinates of the space that the training clips span, where these are the fewer.

    A regression with an L2 penalty has its weights in that space: it is the same one, found sooner.
    """
    if len(train) >= train.shape[1]:
        return train, test
    values, vectors = np.linalg.eigh(train @ train.T)
    kept = values > 1e-12 * max(values[-1], 1e-300)
    axes, lengths = vectors[:, kept], np.sqrt(values[kept])
    if not kept.any():  # all clips are one
        return train, test
    return axes * lengths, test @ (train.T @ axes) / lengths


def _choose(x: Array, y: Array, one: Round, metric: str) -> float:
    """Return the C that does best on the clips that choose; of equals the strongest regularisation."""
    if not len(one.valid):
        return STRENGTHS[len(STRENGTHS) // 2]
    train, valid = (x[one.train], y[one.train]), (x[one.valid], y[one.valid])
    results = [score(metric, regression_scores(*train, valid[0], strength=c), valid[1]) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(results))]


def score(metric: str, scores: Array, labels: Array) -> float:
    """Return the accuracy, or the mean average precision over the classes that occur in the labels.

    Args:
        metric: ``accuracy`` or ``mAP``.
        scores: (clips, classes).
        labels: 0 and 1, likewise.
    """
    if metric == "accuracy":
        return float((scores.argmax(1) == labels.argmax(1)).mean())
    from sklearn.metrics import average_precision_score

    precision: Callable[..., float] = average_precision_score
    there = labels.any(0)
    if not there.any():
        return 0.0
    return float(np.mean([precision(labels[:, c], scores[:, c]) for c in np.flatnonzero(there)]))
