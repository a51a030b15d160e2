"""Quick probes of frozen embeddings: nearest neighbors, and logistic regression, both by scikit-learn.

They show whether a network learns. They are not the M2D papers' linear evaluation (``protocol.py``), and not
the official HEAR scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hear_m2d.evaluation.linear.datasets import LabeledSet as LabeledSet
from hear_m2d.evaluation.linear.datasets import read_labeled as read_labeled
from hear_m2d.evaluation.linear.datasets import split_by_class
from hear_m2d.evaluation.linear.embeddings import embed_task as embed_task
from hear_m2d.utils.errors import InputError

NEIGHBORS = 10
TEMPERATURE = 0.07
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # values of scikit-learn's C, the strongest regularization first

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Round:
    """Indices of the clips that train, choose C, and test; with folds there are several rounds."""

    train: Indices
    valid: Indices
    test: Indices


@dataclass(frozen=True)
class ProbeResult:
    """The scores of one set.

    Attributes:
        task: The set's name.
        metric: ``accuracy``, or ``mAP``: mean average precision over the classes that the test clips have.
        knn: Score of the nearest neighbors, mean over folds; None if not requested.
        linear: Score of the logistic regression, mean over folds; None if not requested.
        majority: Score of always answering the most frequent training class; for mAP the mean share of a
            class among the test clips.
        strength: The C that was chosen.
        clips: Number of clips.
        classes: Number of classes.
        splits: ``given``, ``folds`` or ``ours``.
        notes: Sentences about decisions.
    """

    task: str
    metric: str
    knn: float | None
    linear: float | None
    majority: float
    strength: float | None
    clips: int
    classes: int
    splits: str
    notes: tuple[str, ...]


def probe(
    embeddings: NDArray[np.floating[Any]],
    labeled: LabeledSet,
    *,
    knn: bool = True,
    linear: bool = True,
    neighbors: int = NEIGHBORS,
) -> ProbeResult:
    """Score embeddings on a labeled set.

    Both probes see embeddings that are standardized with the training clips' mean and deviation, feature by
    feature. The neighbors come from all clips outside the test; if the splits are ours, from all other
    clips. Each fold is the test once; the fold after it chooses C in the first round, as in HEAR.

    Args:
        embeddings: (clips, features), in the set's order.
        labeled: The clips' labels and splits.
        knn: Score the nearest neighbors.
        linear: Score a logistic regression.
        neighbors: How many neighbors vote.

    Raises:
        InputError: Embeddings that are not finite, or not one per clip.
    """
    x = check_embeddings(embeddings, labeled)
    y = targets(labeled)
    all_rounds, strength, notes = rounds(labeled), None, list(labeled.notes)
    by_regression = []
    if knn and labeled.splits == "ours":
        notes.append("neighbors: leave one out")
    for one in all_rounds if linear else []:
        value, strength = regression_score(x, y, one, strength)
        by_regression.append(value)
    return ProbeResult(
        task=labeled.name,
        metric=labeled.metric,
        knn=neighbors_of_set(x, y, labeled, count=neighbors) if knn else None,
        linear=float(np.mean(by_regression)) if linear else None,
        majority=majority_of_set(y, labeled),
        strength=strength,
        clips=len(labeled.clips),
        classes=len(labeled.classes),
        splits=labeled.splits,
        notes=tuple(notes),
    )


def check_embeddings(embeddings: NDArray[np.floating[Any]], labeled: LabeledSet) -> Array:
    """Return the embeddings as an array with a row for each clip.

    Raises:
        InputError: They are not finite, or not one per clip.
    """
    x: Array = np.asarray(embeddings)
    if x.ndim != 2 or len(x) != len(labeled.clips):
        raise InputError(f"{labeled.name}: {len(labeled.clips)} clips, but embeddings of shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError(f"{labeled.name}: the embeddings are not all finite")
    return x


def targets(labeled: LabeledSet) -> Labels:
    """Return each clip's class, (clips,), or for a multilabel set 0 and 1, (clips, classes)."""
    index = {name: number for number, name in enumerate(labeled.classes)}
    if labeled.kind == "multiclass":
        return np.array([index[clip.labels[0]] for clip in labeled.clips])
    y = np.zeros((len(labeled.clips), len(labeled.classes)), np.int64)
    for row, clip in enumerate(labeled.clips):
        y[row, [index[label] for label in clip.labels]] = 1
    return y


def rows_of(labeled: LabeledSet, splits: Sequence[str]) -> Indices:
    """Return the indices of the clips of some splits."""
    return np.flatnonzero([clip.split in splits for clip in labeled.clips])


def rounds(labeled: LabeledSet) -> list[Round]:
    """Return one round, or one for each fold; without valid clips a fifth of the training clips chooses C."""
    folds = labeled.folds
    if labeled.splits == "folds":
        nexts = folds[1:] + folds[:1]
        return [
            Round(
                rows_of(labeled, [fold for fold in folds if fold not in (test, valid)]),
                rows_of(labeled, [valid]),
                rows_of(labeled, [test]),
            )
            for test, valid in zip(folds, nexts, strict=True)
        ]
    train, test = rows_of(labeled, ["train"]), rows_of(labeled, ["test"])
    if "valid" in folds:
        return [Round(train, rows_of(labeled, ["valid"]), test)]
    split = split_by_class([labeled.clips[row] for row in train])
    chooses = np.array([clip.split == "valid" for clip in split])
    return [Round(train[~chooses], train[chooses], test)]


def neighbors_of_set(x: Array, y: Labels, labeled: LabeledSet, *, count: int = NEIGHBORS) -> float:
    """Return the nearest neighbors' score of a set, a mean over folds; of all clips where splits are ours."""
    if labeled.splits == "ours":
        return knn_score(x, y, count=count)
    scores = []
    for one in rounds(labeled):
        others = np.concatenate([one.train, one.valid])
        scores.append(knn_score(x[others], y[others], x[one.test], y[one.test], count=count))
    return float(np.mean(scores))


def majority_of_set(y: Labels, labeled: LabeledSet) -> float:
    """Return the majority's score of a set, a mean over folds."""
    return float(np.mean([majority_score(y[one.train], y[one.test]) for one in rounds(labeled)]))


def knn_score(
    train: Array,
    y: Labels,
    test: Array | None = None,
    test_y: Labels | None = None,
    *,
    count: int = NEIGHBORS,
) -> float:
    """Return the score of a vote of the nearest training clips by cosine.

    A neighbor counts exp(cosine / 0.07), as in Wu et al., "Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination" (CVPR 2018).

    Args:
        train: (clips, features).
        y: Their :func:`targets`.
        test: (test clips, features); None scores each training clip by its neighbors, itself left out.
        test_y: The test clips' targets.
        count: How many neighbors vote; fewer where there are fewer.
    """
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    # The mean of neighbors' 0 and 1 is the score of each class: for several labels, that is a regressor.
    kind = KNeighborsClassifier if y.ndim == 1 else KNeighborsRegressor
    model = kind(min(count, len(train) - (test is None)), metric="cosine", weights=_vote)
    scale = StandardScaler().fit(train)
    model.fit(scale.transform(train), y)
    answer = model.predict(None if test is None else scale.transform(test))
    return score(y if test_y is None else test_y, answer)


def _vote(distances: Array) -> Array:
    weights: Array = np.exp((1 - distances) / TEMPERATURE)
    return weights


def regression_score(x: Array, y: Labels, one: Round, c: float | None = None) -> tuple[float, float]:
    """Return the test score of a logistic regression with an L2 penalty, and its C.

    Args:
        x: (clips, features).
        y: Their :func:`targets`.
        one: Which clips train, choose C, and test.
        c: The C, where it was chosen before; of equals the strongest regularization is chosen.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Rotated into the space of the training clips if there are fewer clips than features. The penalty keeps
    # the weights in that space, so that the result is the same and the computation faster.
    rotate = PCA(svd_solver="full") if len(one.train) < x.shape[1] else "passthrough"
    prepare = make_pipeline(StandardScaler(), rotate).fit(np.asarray(x[one.train], np.float64))
    regression: Any = LogisticRegression(max_iter=1000)
    name = "C"
    if y.ndim == 2:
        regression, name = OneVsRestClassifier(regression), "estimator__C"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough for a probe
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        if c is None and not len(one.valid):
            c = C_GRID[len(C_GRID) // 2]
        if c is None:
            rows = np.concatenate([one.train, one.valid])
            chooses = PredefinedSplit(np.repeat([-1, 0], [len(one.train), len(one.valid)]))
            search = GridSearchCV(
                regression, {name: C_GRID}, scoring=_scorer, cv=chooses, refit=False, error_score="raise"
            )
            c = float(search.fit(prepare.transform(x[rows]), y[rows]).best_params_[name])
        regression.set_params(**{name: c}).fit(prepare.transform(x[one.train]), y[one.train])
    return _scorer(regression, prepare.transform(x[one.test]), y[one.test]), c


def _scorer(model: Any, x: Array, y: Labels) -> float:
    return score(y, model.predict(x) if y.ndim == 1 else model.predict_proba(x))


def score(y: Labels, answer: NDArray[Any]) -> float:
    """Return the accuracy, or the mean average precision over the classes that occur.

    Args:
        y: :func:`targets`.
        answer: Classes, (clips,), or scores of each class, (clips, classes).
    """
    from sklearn.metrics import average_precision_score

    if y.ndim == 1:
        return float((answer == y).mean())
    occurs = y.any(0)
    if not occurs.any():
        return 0.0
    return float(average_precision_score(y[:, occurs], answer[:, occurs], average="macro"))


def majority_score(train: Labels, test: Labels) -> float:
    """Return the score of the same answer for each clip: the most frequent training class."""
    if train.ndim == 1:
        return float((test == np.bincount(train).argmax()).mean())
    return float(test.mean(0)[test.any(0)].mean()) if test.any() else 0.0
