"""The probes against slow references, on sets where the answer is known."""

import math
from collections import Counter

import numpy as np
import pytest

from hear_m2d.evaluation.linear.datasets import Clip, LabeledSet, split_by_class
from hear_m2d.evaluation.linear.probes import (
    C_GRID,
    Round,
    knn_score,
    majority_score,
    probe,
    regression_score,
    rounds,
    score,
    targets,
)

pytest.importorskip("sklearn")


def make_set(labels, splits, kind="multiclass", mode="given"):
    """A set with these labels (a tuple a clip) and splits."""
    clips = tuple(
        Clip(f"{i:03d}", None, label, split)
        for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    )
    classes = tuple(sorted({name for label in labels for name in label}))
    return LabeledSet("set", kind, classes, clips, mode, len(clips))


def blobs(clips, classes=3, features=8, apart=6.0, seed=0):
    """Embeddings that form one cloud a class, and their labels."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(clips) % classes
    centers = rng.normal(size=(classes, features)) * apart
    return centers[numbers] + rng.normal(size=(clips, features)), [("abcdef"[n],) for n in numbers]


THIRDS = ["train", "train", "train", "valid", "valid", "valid", "test", "test", "test"]


def slow_neighbors(reference, labels, queries, count, leave_out):
    """One query at a time, one neighbor at a time."""
    found = []
    for q, query in enumerate(queries):
        near = []
        for r, known in enumerate(reference):
            if leave_out and q == r:
                continue
            dot = sum(a * b for a, b in zip(query, known, strict=True))
            near.append((dot / (math.hypot(*query) * math.hypot(*known)), r))
        near = sorted(near, reverse=True)[:count]
        weights = [math.exp(cosine / 0.07) for cosine, _ in near]
        votes = [0.0] * len(labels[0])
        for weight, (_, r) in zip(weights, near, strict=True):
            for c, there in enumerate(labels[r]):
                votes[c] += weight * there / sum(weights)
        found.append(votes)
    return np.array(found)


@pytest.mark.parametrize("kind", ["one label", "several labels"])
@pytest.mark.parametrize("leave_out", [False, True])
def test_neighbors_equal_a_slow_reference(leave_out, kind):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    scale = [(x - train.mean(0)) / train.std(0) for x in (train, test)]
    asked = scale[0] if leave_out else scale[1]
    y = rng.integers(0, 4, 60) if kind == "one label" else (rng.random((60, 4)) < 0.4).astype(int)
    labels = np.eye(4)[y] if kind == "one label" else y
    test_y = y if leave_out else y[:40]
    slow = slow_neighbors(scale[0], labels, asked, 6, leave_out)
    expected = score(test_y, slow.argmax(1) if kind == "one label" else slow)
    arguments = (train, y) if leave_out else (train, y, test, test_y)
    assert knn_score(*arguments, count=6) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


def test_a_clip_has_no_vote_on_itself():
    """Each clip's own class is unique: a vote for itself would be the only way to be right."""
    x = np.random.default_rng(0).normal(size=(12, 6))
    assert knn_score(x, np.arange(12), count=5) == 0


def test_fewer_clips_than_neighbors_all_vote():
    assert knn_score(np.eye(3), np.arange(3), np.eye(3), np.arange(3), count=10) == 1


@pytest.mark.parametrize("splits", ["given", "folds", "ours"])
def test_separate_classes_are_recognized_and_noise_is_not(splits):
    x, labels = blobs(90)
    names = {"given": THIRDS * 10, "folds": [str(i // 3 % 5) for i in range(90)], "ours": [""] * 90}[splits]
    labeled = make_set(labels, names, mode=splits)
    if splits == "ours":
        clips = tuple(split_by_class(labeled.clips))
        labeled = LabeledSet("set", "multiclass", labeled.classes, clips, "ours", 90)
    result = probe(x, labeled)
    assert (result.knn, result.linear) == (1.0, 1.0)
    noise = probe(np.random.default_rng(1).normal(size=x.shape), labeled)
    assert noise.knn < 0.65
    assert noise.linear < 0.65


@pytest.mark.parametrize("features", [8, 100])  # fewer than clips, and more
def test_the_regression_is_scikit_learns_on_standardized_features(features):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = blobs(60, features=features, apart=1.0)
    y = np.array([ord(label[0]) - ord("a") for label in labels])
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x[:40], y[:40])
    one = Round(np.arange(40), np.arange(0), np.arange(40, 60))
    value, c = regression_score(x, y, one, 0.1)
    assert c == 0.1
    assert value == pytest.approx(reference.score(x[40:], y[40:]), abs=1e-12)


def test_units_and_offsets_of_features_do_not_matter():
    x, labels = blobs(90, apart=0.7)
    labeled = make_set(labels, THIRDS * 10)
    rng = np.random.default_rng(2)
    scaled = x * rng.uniform(0.01, 100, x.shape[1]) + rng.normal(size=x.shape[1]) * 50
    first, second = probe(x, labeled), probe(scaled, labeled)
    assert (first.knn, first.linear) == (second.knn, second.linear)
    assert first.linear < 1


def test_test_clips_do_not_enter_the_standardization():
    x, labels = blobs(90, apart=0.7)
    labeled = make_set(labels, THIRDS * 10)
    far = np.concatenate([x, np.full((9, 8), 1e6)])
    more = make_set([*labels, *[("a",)] * 9], [*THIRDS * 10, *["test"] * 9])
    right = round(probe(x, labeled).linear * 30)
    assert round(probe(far, more).linear * 39) in (right, right + 9)  # the same answers for the first 30


def test_collapsed_embeddings_give_chance_and_no_error():
    _, labels = blobs(90)
    result = probe(np.full((90, 8), 0.1), make_set(labels, THIRDS * 10))
    assert result.knn == pytest.approx(1 / 3, abs=0.01)
    assert result.linear == pytest.approx(1 / 3, abs=0.01)


def test_folds_take_turns_as_in_hear():
    names = [f"fold{i % 4:02d}" for i in range(20)]
    labeled = make_set(blobs(20)[1], names, mode="folds")
    found = rounds(labeled)
    assert len(found) == 4
    for i, one in enumerate(found):
        assert {names[row] for row in one.test} == {f"fold{i:02d}"}
        assert {names[row] for row in one.valid} == {f"fold{(i + 1) % 4:02d}"}
        assert {names[row] for row in one.train} == {f"fold{(i + j) % 4:02d}" for j in (2, 3)}


def test_without_clips_that_choose_a_fifth_of_each_training_class_does():
    x, labels = blobs(60)
    labeled = make_set(labels, ["train"] * 45 + ["test"] * 15)
    (one,) = rounds(labeled)
    assert Counter(labels[row] for row in one.valid) == {("a",): 3, ("b",): 3, ("c",): 3}
    assert len(one.train) == 36
    assert not set(one.train) & set(one.valid)
    assert probe(x, labeled).linear == 1.0


def test_of_equal_strengths_the_strongest_regularization_is_chosen():
    x, labels = blobs(90, apart=50.0)
    assert probe(x, make_set(labels, THIRDS * 10)).strength == C_GRID[0]


def test_the_choice_does_not_look_at_the_test():
    x, labels = blobs(90, apart=0.7)
    other = list(labels)
    for i in range(90):
        if THIRDS[i % 9] == "test":
            other[i] = labels[(i + 1) % 90]
    first, second = (probe(x, make_set(given, THIRDS * 10)) for given in (labels, other))
    assert first.strength == second.strength
    assert first.linear != second.linear


def test_only_what_is_asked_for_is_computed():
    x, labels = blobs(90)
    labeled = make_set(labels, THIRDS * 10)
    assert probe(x, labeled, linear=False).linear is None
    assert probe(x, labeled, knn=False).knn is None


def test_several_labels_a_clip_are_scored_by_the_mean_average_precision():
    rng = np.random.default_rng(0)
    there = rng.random((120, 3)) < 0.4
    x = there @ rng.normal(size=(3, 10)) * 5 + rng.normal(size=(120, 10))
    labels = [tuple("abc"[c] for c in np.flatnonzero(row)) for row in there]
    labeled = make_set(labels, ["train"] * 60 + ["valid"] * 30 + ["test"] * 30, kind="multilabel")
    np.testing.assert_array_equal(targets(labeled), there)
    result = probe(x, labeled)
    assert result.metric == "mAP"
    assert result.linear > 0.95
    assert result.knn > 0.9
    noise = probe(rng.normal(size=x.shape), labeled)
    assert noise.linear < 0.7


def average_precision(scores, labels):
    """The mean, over the positives, of the precision at their rank."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, found = 0, []
    for rank, i in enumerate(order, start=1):
        if labels[i]:
            hits += 1
            found.append(hits / rank)
    return sum(found) / len(found)


def test_mean_average_precision_equals_a_slow_reference_and_leaves_out_absent_classes():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((30, 4)), (rng.random((30, 4)) < 0.3).astype(float)
    labels[:, 2] = 0
    slow = np.mean([average_precision(scores[:, c], labels[:, c]) for c in (0, 1, 3)])
    assert score(labels.astype(int), scores) == pytest.approx(slow, abs=1e-12)


def test_a_class_that_no_training_clip_has_is_not_an_error():
    x, labels = blobs(60)
    labels = [("d",) if i > 50 else label for i, label in enumerate(labels)]
    result = probe(x, make_set(labels, ["train"] * 30 + ["valid"] * 15 + ["test"] * 15))
    assert 0 < result.linear < 1


def test_embeddings_that_are_not_finite_or_too_few_are_refused():
    x, labels = blobs(90)
    labeled = make_set(labels, THIRDS * 10)
    with pytest.raises(ValueError, match="90 clips, but embeddings of shape"):
        probe(x[:-1], labeled)
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="not all finite"):
        probe(x, labeled)


def test_the_majority_is_the_score_of_the_most_frequent_training_class():
    assert majority_score(np.array([0, 1, 1]), np.array([1, 0, 0, 1])) == 0.5
    assert majority_score(np.array([2, 2, 1]), np.array([1, 0])) == 0
    several = np.array([[1, 0, 1], [0, 0, 1]])
    assert majority_score(several, several) == 0.75  # a class without a test clip is left out
    x, labels = blobs(90)
    assert probe(x, make_set(labels, THIRDS * 10)).majority == pytest.approx(1 / 3)
