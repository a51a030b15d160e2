"""Batches of fine-tuning: functions of (seed, epoch); rare labels more often; clips of one length."""

from collections import Counter

import numpy as np
import pytest
import soundfile

from hear_m2d.evaluation.finetune.data import Waveforms, epoch_batches, rarity_weights
from hear_m2d.evaluation.linear.datasets import Clip, LabeledSet


def test_an_epoch_is_a_function_of_seed_and_epoch_and_leaves_out_the_incomplete_batch():
    rows = np.arange(100, 123)
    batches = epoch_batches(rows, 5, seed=1, epoch=2)
    assert [len(batch) for batch in batches] == [5] * 4
    drawn = np.concatenate(batches)
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(rows)
    assert np.array_equal(drawn, np.concatenate(epoch_batches(rows, 5, seed=1, epoch=2)))
    assert not np.array_equal(drawn, np.concatenate(epoch_batches(rows, 5, seed=1, epoch=3)))
    assert [len(batch) for batch in epoch_batches(rows, 50, seed=1, epoch=0)] == [23]


def test_the_weights_are_the_published_ones():
    y = np.array([[1, 0], [1, 0], [1, 0], [1, 1]])
    weights = rarity_weights(y)
    assert weights[0] == pytest.approx((1000 / 4.01) ** (1 / 1.5))
    assert weights[3] == pytest.approx((1000 / 4.01 + 1000 / 1.01) ** (1 / 1.5))


def test_weighted_drawing_takes_heavy_rows_more_often_and_none_twice():
    rows, weights = np.arange(40), np.array([1.0] * 20 + [9.0] * 20)
    counts = Counter()
    for epoch in range(300):
        drawn = np.concatenate(epoch_batches(rows, 4, seed=0, epoch=epoch, weights=weights, count=4))
        assert len(set(drawn)) == 4
        counts.update(drawn >= 20)
    assert 0.84 < counts[True] / 1200 < 0.93  # 0.9 at the first draw, a little less at the next


def test_clips_are_cut_or_padded_and_training_crops_follow_from_seed_and_epoch(tmp_path):
    clips = []
    for index, length in enumerate((4000, 20000)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.linspace(0.1, 0.5, length), 16000, subtype="FLOAT")
        clips.append(Clip(path.name, path, ("x",), "train" if index else "test"))
    labeled = LabeledSet("set", "multiclass", ("x",), tuple(clips), "given", 2)
    waves = Waveforms(labeled, 16000, 8000, seed=3)
    rows = [np.array([0, 1])]
    (first,), (again,), (other,) = (list(waves.batches(rows, epoch)) for epoch in (0, 0, 1))
    assert first.shape == (2, 8000)
    assert (first[0, 4000:] == 0).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1], other[1])
    (tested,) = waves.batches(rows, None)
    assert tested[0, 0] == pytest.approx(0.1)
    assert list(waves.batches([], 0)) == []
