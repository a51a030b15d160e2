"""Augmentations: the published mixture, stripes, crops and dropped patches, from a given generator."""

import math

import numpy as np
import pytest
import torch

from hear_m2d.evaluation.finetune.augment import (
    dropped_counts,
    kept_patches,
    mask_stripes,
    mix,
    mix_log_mels,
    mixup_shares,
    resize_crop,
)


def test_mixing_log_mels_equals_the_published(fixtures_dir):
    arrays = np.load(fixtures_dir / "log_mixup.npz")
    a, b = torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"])
    names = [name for name in arrays.files if name.startswith("alpha_")]
    assert len(names) == 5
    for name in names:
        shares = torch.full((len(a),), float(name.removeprefix("alpha_")))
        np.testing.assert_allclose(mix_log_mels(a, b, shares), arrays[name], atol=2e-5, err_msg=name)


def test_each_clip_has_a_share_of_its_own_and_targets_mix_as_the_sound_does():
    shares, partner = mixup_shares(64, 0.3, np.random.default_rng(0))
    assert sorted(partner.tolist()) == list(range(64))
    assert 0 <= shares.min() < 0.1 < 0.9 < shares.max() <= 1
    x, hot = torch.randn(64, 10), torch.eye(64)
    mixed, targets = mix(x, x[partner], shares), mix(hot, hot[partner], shares)
    for clip in (0, 7, 63):
        expected = shares[clip] * x[clip] + (1 - shares[clip]) * x[partner[clip]]
        torch.testing.assert_close(mixed[clip], expected)
        assert targets[clip].sum().item() == pytest.approx(1)


def test_stripes_are_the_same_in_every_clip_and_no_wider_than_allowed():
    x = torch.ones(5, 1, 80, 101)
    widths = []
    for seed in range(200):
        masked = mask_stripes(x, 15, 48, np.random.default_rng(seed))
        assert (masked == masked[:1]).all()
        bins, frames = (masked[0, 0, :, -1] == 0).sum(), (masked[0, 0, -1] == 0).sum()
        bins, frames = min(bins, (masked[0, 0, :, 0] == 0).sum()), min(frames, (masked[0, 0, 0] == 0).sum())
        widths.append((int(bins), int(frames)))
    bins, frames = zip(*widths, strict=True)
    assert max(bins) < 15
    assert max(frames) < 48
    assert max(bins) > 10
    assert max(frames) > 35
    assert (mask_stripes(x, 0, 0, np.random.default_rng(0)) == 1).all()
    mask_stripes(torch.ones(1, 1, 8, 20), 30, 192, np.random.default_rng(0))  # stripes wider than the sound


def test_a_resize_crop_keeps_the_size_and_differs_from_clip_to_clip():
    ramp = torch.arange(100.0).expand(1, 1, 80, 100)
    x = ramp.repeat(8, 1, 1, 1)
    cropped = resize_crop(x, np.random.default_rng(0))
    assert cropped.shape == x.shape
    assert not torch.equal(cropped[0], cropped[1])
    assert torch.equal(cropped, resize_crop(x, np.random.default_rng(0)))
    for steps in cropped.diff(dim=-1)[:, 0, 40]:
        # The ramp's new slope is the share of the frames that the crop covers; 0 where the canvas is empty.
        assert 0.55 < steps[steps > 0.2].median() < 1.55


def test_the_counts_of_dropped_rows_and_columns_follow_the_published_formula():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    for grid, ratio in (((5, 62), 0.5), ((5, 31), 0.5), ((5, 7), 0.7)):
        rows, columns = grid
        for u in (0.0, 0.3, 0.6, 0.999):
            nf = min(rows - 1, math.floor((rows * ratio + 1) * u))
            nt = math.floor(columns * max(ratio + 0.5 / columns - nf / rows, 0))
            assert dropped_counts(grid, ratio, Fixed(u)) == (nf, nt)


def test_as_in_the_paper_whole_rows_and_columns_are_left_out():
    for seed in range(20):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        kept = kept_patches(6, (5, 31), 0.5, "paper", rng)
        rows, columns = dropped_counts((5, 31), 0.5, again)
        assert kept.shape == (6, (5 - rows) * (31 - columns))
        for clip in kept:
            grid = torch.zeros(5, 31, dtype=torch.bool)
            grid.view(-1)[clip] = True
            assert grid.any(1).sum() == 5 - rows
            assert grid.any(0).sum() == 31 - columns
            assert grid.sum() == (5 - rows) * (31 - columns)  # a full grid of what is left


def test_as_published_the_marked_rows_and_columns_are_kept_first():
    seen = set()
    for seed in range(40):
        rows, columns = dropped_counts((5, 31), 0.5, np.random.default_rng(seed))
        kept = kept_patches(3, (5, 31), 0.5, "as_published", np.random.default_rng(seed))
        count = (5 - rows) * (31 - columns)
        marked = 155 - count
        assert kept.shape == (3, count)
        for clip in kept:
            assert len(set(clip.tolist())) == count
            grid = torch.zeros(5, 31, dtype=torch.bool)
            grid.view(-1)[clip] = True
            if marked <= count:  # all marked rows and columns are there, filled up with others
                assert grid.all(1).sum() >= rows
                assert grid.all(0).sum() >= columns
                seen.add("filled up")
            else:
                seen.add("cut")
    assert "filled up" in seen


def test_the_kept_share_is_about_one_half_either_way():
    shares = [
        kept_patches(1, (5, 62), 0.5, rule, np.random.default_rng(seed)).shape[1] / 310
        for rule in ("paper", "as_published")
        for seed in range(200)
    ]
    assert 0.4 < np.mean(shares) < 0.6
