"""Schedules and parameter groups equal the published ones."""

import json

import numpy as np
import pytest

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.m2d import M2D
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.schedules import cosine_rate, decay_groups, learning_rate, momentum_decay


@pytest.fixture
def schedules(fixtures_dir):
    return json.loads((fixtures_dir / "schedules.json").read_text())


def test_momentum_decay_equals_the_published(schedules):
    for case in schedules["ema"]:
        ours = [
            momentum_decay(s, total=case["total_steps"], start=case["ema_decay_init"], end=case["ema_decay"])
            for s in case["steps"]
        ]
        np.testing.assert_allclose(ours, case["decay"], rtol=1e-9)


def test_visible_counts_truncate_like_the_published(schedules):
    for case in schedules["len_keep"]:
        assert visible_count(case["L"], case["mask_ratio"]) == case["len_keep"], case
    assert visible_count(190, 0.9) == 18


@pytest.mark.parametrize(("values", "scale"), [("values", 1.0), ("values_lr_scale_0p3", 0.3)])
def test_learning_rate_equals_the_published(schedules, values, scale):
    for case in schedules["lr"]:
        rule = {"warmup": case["warmup_epochs"], "total": case["epochs"], "minimum": case["min_lr"]}
        ours = [scale * cosine_rate(epoch, peak=case["lr"], **rule) for epoch in case["epoch"]]
        np.testing.assert_allclose(ours, case[values], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize(
    ("kind", "published"), [(M2D, "M2DViT"), (MSMMAE, "MaskedAutoencoderViT (m2d repository)")]
)
def test_weight_decay_groups_equal_the_published(kind, published, fixtures_dir, name_of):
    expected = json.loads((fixtures_dir / "weight_decay_groups.json").read_text())[published]
    encoder = EncoderConfig(input_size=(80, 96), width=64, depth=2, heads=1)
    depth = len({n.split(".")[1] for n in expected["decay"] if n.startswith("decoder_blocks")})
    objective = kind(encoder, DecoderConfig(width=32, depth=depth, heads=2))
    plain, decayed = decay_groups(objective, 0.05)
    names = {id(p): name for name, p in objective.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {name_of(n) for n in expected["decay"]}
    assert {names[id(p)] for p in plain["params"]} == {name_of(n) for n in expected["no_decay"]}
    assert [plain["weight_decay"], decayed["weight_decay"]] == expected["weight_decay"]


def test_the_only_step_of_a_run_has_the_peak_rate():
    recipe = Recipe(objective="m2d", steps=1)
    assert learning_rate(recipe, 0, 1) == recipe.learning_rate
    assert learning_rate(recipe, 0, 100) == 0
    assert learning_rate(recipe, 100, 100) == recipe.optimizer.min_lr
