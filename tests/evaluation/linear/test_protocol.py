"""The papers' linear evaluation against slow references, with its traps."""

import math

import numpy as np
import pytest
import torch

from hear_m2d.evaluation.linear.datasets import Clip, LabeledSet
from hear_m2d.evaluation.linear.protocol import (
    LinearSettings,
    classifier_loss,
    fit_linear,
    half_interval,
    hold_out,
    linear_evaluation,
)

pytest.importorskip("sklearn")
FAST = LinearSettings(learning_rate=0.01, seeds=(42, 43), epochs=30)


def make_set(labels, splits, mode="given", kind="multiclass"):
    labels = [label if isinstance(label, tuple) else (label,) for label in labels]
    clips = tuple(
        Clip(f"{i:03d}", None, label, split)
        for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    )
    classes = tuple(sorted({name for label in labels for name in label}))
    return LabeledSet("set", kind, classes, clips, mode, len(clips))


def blobs(clips, features=8, apart=3.0, seed=0):
    rng = np.random.default_rng(seed)
    numbers = np.arange(clips) % 3
    centers = rng.normal(size=(3, features)) * apart
    x = centers[numbers] + rng.normal(size=(clips, features))
    return x.astype(np.float32), ["abc"[number] for number in numbers]


def test_the_loss_is_the_mean_over_clips_and_classes():
    """Cross-entropy divided by the number of classes: harmless under Adam, decisive under SGD."""
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(5, 7, generator=generator), torch.tensor([0, 3, 6, 3, 1])
    total = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total -= row[label] - math.log(sum(math.exp(value) for value in row))
    assert classifier_loss(logits, y).item() == pytest.approx(total / 35, rel=1e-5)
    several = (torch.rand(5, 7, generator=generator) < 0.3).float()
    p = torch.sigmoid(logits)
    expected = -(several * p.log() + (1 - several) * (1 - p).log()).mean()
    assert classifier_loss(logits, several).item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_equals_a_plain_loop_of_adam():
    x, labels = blobs(50)
    x, y = torch.from_numpy(x), torch.tensor(["abc".index(label) for label in labels])
    settings = LinearSettings(learning_rate=0.003, epochs=4, batch_size=20)
    layer, _, epochs = fit_linear(x, y, x, y, settings=settings, seed=42, classes=3)
    assert epochs == 4
    generator = torch.Generator().manual_seed(42)
    weight, bias = (torch.empty(shape) for shape in ((3, 8), (3,)))
    for tensor in (weight, bias):
        torch.nn.init.uniform_(tensor, -(8**-0.5), 8**-0.5, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=0.003, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-8)
    best, kept = -1.0, None
    for _ in range(4):
        order = torch.randperm(50, generator=generator)
        for start in range(0, 50, 20):
            rows = order[start : start + 20]
            log = torch.log_softmax(x[rows] @ weight.T + bias, 1)
            loss = -(torch.eye(3)[y[rows]] * log).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = ((x @ weight.T + bias).argmax(1) == y).double().mean().item()
        if value >= best:
            best, kept = value, weight.detach().clone()
    torch.testing.assert_close(layer.weight, kept, atol=1e-6, rtol=1e-5)


def test_of_epochs_with_equal_scores_the_last_counts_and_patience_starts_anew():
    x, labels = blobs(60, apart=20)
    x, y = torch.from_numpy(x), torch.tensor(["abc".index(label) for label in labels])
    settings = LinearSettings(learning_rate=0.01, epochs=60, patience=5)
    layer, best, epochs = fit_linear(x, y, x, y, settings=settings, seed=42, classes=3)
    assert (best, epochs) == (1.0, 60)  # always perfect: no epoch is worse, none stops it
    assert layer.weight.abs().max() > 0.3  # the last epoch's weights, not the first's


def test_training_stops_after_the_patience_with_the_best_weights():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(40, 30)).astype(np.float32)), torch.arange(40) % 3
    valid, valid_y = torch.from_numpy(rng.normal(size=(30, 30)).astype(np.float32)), torch.arange(30) % 3
    settings = LinearSettings(learning_rate=0.01, epochs=200, patience=7)
    layer, best, epochs = fit_linear(x, y, valid, valid_y, settings=settings, seed=42, classes=3)
    assert epochs < 200
    assert ((layer(valid).argmax(1) == valid_y).double().mean().item()) == best


def test_the_hold_out_is_a_tenth_with_every_class_and_differs_between_seeds():
    y = np.repeat(np.arange(50), 32)
    kept, held, complete = hold_out(y, 42)
    assert (len(held), len(kept)) == (160, 1440)
    assert complete
    assert set(y[held.numpy()]) == set(range(50))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1600))
    assert held.tolist() != hold_out(y, 43)[1].tolist()
    assert held.tolist() == hold_out(y, 42)[1].tolist()
    assert not hold_out(np.arange(30), 42)[2]  # thirty classes in three clips: no draw can hold them all


def test_the_interval_is_student_s_t():
    assert half_interval([0.5, 0.6, 0.7]) == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert half_interval([0.5]) is None


@pytest.mark.parametrize("mode", ["given", "folds"])
def test_scores_are_means_over_folds_and_seeds_and_the_same_each_time(mode):
    x, labels = blobs(120)
    splits = ["train", "train", "train", "valid", "test"] * 24
    names = splits if mode == "given" else [f"fold{i // 3 % 4}" for i in range(120)]
    labeled = make_set(labels, names, mode)
    result = linear_evaluation(x, labeled, FAST)
    assert result.score > 0.9
    assert [run["seed"] for run in result.runs] == [42, 43]
    for run in result.runs:
        assert [fold["fold"] for fold in run["folds"]] == (
            ["test"] if mode == "given" else [f"fold{i}" for i in range(4)]
        )
        assert run["score"] == pytest.approx(np.mean([fold["score"] for fold in run["folds"]]))
    assert result.score == pytest.approx(np.mean([run["score"] for run in result.runs]))
    assert linear_evaluation(x, labeled, FAST) == result
    assert any("random tenth" in note for note in result.notes) == (mode == "folds")


def test_units_and_offsets_of_features_do_not_matter_and_test_clips_do_not_shape_the_scale():
    x, labels = blobs(100)
    labeled = make_set(labels, ["train", "train", "train", "valid", "test"] * 20)
    result = linear_evaluation(x, labeled, FAST)
    scaled = x * np.linspace(0.01, 100, 8) + 50
    assert linear_evaluation(scaled, labeled, FAST).score == pytest.approx(result.score, abs=1e-6)
    far = x.copy()
    far[4::5] += 1e4  # the test clips
    assert [fold["valid_score"] for run in result.runs for fold in run["folds"]] == [
        fold["valid_score"] for run in linear_evaluation(far, labeled, FAST).runs for fold in run["folds"]
    ]


def test_several_labels_a_clip_are_scored_by_mean_average_precision():
    rng = np.random.default_rng(0)
    there = rng.random((150, 3)) < 0.4
    x = (there @ rng.normal(size=(3, 10)) * 5 + rng.normal(size=(150, 10))).astype(np.float32)
    labels = [tuple("abc"[c] for c in np.flatnonzero(row)) for row in there]
    labeled = make_set(labels, ["train"] * 80 + ["valid"] * 30 + ["test"] * 40, kind="multilabel")
    result = linear_evaluation(x, labeled, FAST)
    assert result.metric == "mAP"
    assert result.score > 0.9
