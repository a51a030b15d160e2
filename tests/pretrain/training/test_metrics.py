"""The meters against slow references, in networks that collapsed and in ones that did not, and in a run."""

import dataclasses
import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe
from hear_m2d.pretrain.training import metrics, step
from hear_m2d.pretrain.training.estimate import operations_per_clip
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.metrics import MatrixRate, clip_means, latent_meters, rankme

TINY = Recipe(
    objective="m2d",
    optimizer=OptimizerConfig(base_lr=0.03),
    decoder=DecoderConfig(width=16, depth=1, heads=2),
    encoder=EncoderConfig(width=16, depth=1, heads=2, input_size=(80, 64)),
    batch_size=8,
    steps=6,
    precision="float32",
)
OBJECTIVES = {
    "m2d": TINY,
    "msm_mae": dataclasses.replace(TINY, objective="msm_mae", norm_pix_loss=False, mask_ratio=0.75),
}


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def slow_rankme(x):
    """Equations 1 and 2, singular value by singular value, in float64."""
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    total = sum(abs(value) for value in values)
    entropy = 0.0
    for value in values:
        share = abs(value) / total + 1e-7
        entropy -= share * math.log(share)
    return math.exp(entropy)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (30, 30), (1, 5)])
def test_rankme_equals_a_slow_reference(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    assert float(rankme(x)) == pytest.approx(slow_rankme(x), rel=1e-6)


def test_rankme_of_collapsed_rows_is_one_of_r_directions_r_and_of_noise_near_the_features():
    generator = torch.Generator().manual_seed(0)
    assert float(rankme(torch.ones(50, 20) * 3)) == pytest.approx(1, abs=0.01)
    assert float(rankme(torch.zeros(50, 20))) == pytest.approx(1, abs=0.01)
    four = torch.eye(20)[torch.arange(48) % 4]
    assert float(rankme(four)) == pytest.approx(4, abs=0.01)
    noise = torch.randn(1000, 20, generator=generator)
    assert 19.8 < float(rankme(noise)) <= 20.01


def test_rankme_looks_at_1024_rows_at_equal_distances():
    x = torch.randn(2048 + 512, 6, generator=torch.Generator().manual_seed(0))
    chosen = x[[i * len(x) // 1024 for i in range(1024)]]
    assert float(rankme(x)) == pytest.approx(slow_rankme(chosen), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_rankme_of_values_that_are_not_finite_is_nan_and_raises_nothing(bad):
    x = torch.randn(8, 4)
    x[3, 1] = bad
    assert math.isnan(float(rankme(x))) == (not math.isfinite(bad))


def test_spread_and_cosine_equal_slow_references_without_the_class_token():
    latent = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.5
    tokens = latent[:, 1:].reshape(-1, 7).double().numpy()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(tokens, 2)]
    actual = latent_meters(latent, class_token=True)
    assert float(actual["latent_cosine"]) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert float(actual["latent_std"]) == pytest.approx(tokens.std(0, ddof=1).mean(), abs=1e-5)
    np.testing.assert_allclose(clip_means(latent, class_token=True), latent[:, 1:].mean(1), atol=1e-6)
    np.testing.assert_allclose(clip_means(latent, class_token=False), latent.mean(1), atol=1e-6)


def test_a_collapsed_encoder_has_no_spread_and_cosine_one():
    latent = torch.randn(7).expand(4, 6, 7)
    actual = latent_meters(latent, class_token=True)
    assert float(actual["latent_std"]) == pytest.approx(0, abs=1e-6)
    assert float(actual["latent_cosine"]) == pytest.approx(1, abs=1e-5)
    scattered = latent_meters(torch.randn(64, 6, 99), class_token=True)
    assert abs(float(scattered["latent_cosine"])) < 0.05
    assert float(scattered["latent_std"]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_line_of_the_log_has_the_meters(objective, data, tmp_path):
    train(OBJECTIVES[objective], data, tmp_path / "run", device="cpu", log_every=2)
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    wanted = {"loss", "lr", "grad_norm", "clips_per_s", "data_wait", "share"}
    wanted |= {"latent_std", "latent_cosine", "rankme"}
    if objective == "m2d":
        wanted |= {"momentum", "target_std", "target_cosine"}
    for line in lines:
        assert wanted <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert 1 <= line["rankme"] <= 8.01  # clips of a batch


def rates(monkeypatch, *values):
    """Let the measurements of the matrix rate give these values in turn."""
    left = list(values)
    monkeypatch.setattr(metrics, "matrix_rate", lambda *args: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(metrics.MatrixRate, "due", lambda self: True)
    monkeypatch.setattr(metrics.MatrixRate, "measured", {})


def test_the_share_refers_to_the_highest_rate_and_a_moved_rate_is_logged(data, tmp_path, monkeypatch, caplog):
    rates(monkeypatch, 1e15, 2e15, 1e15)
    with caplog.at_level(logging.INFO):
        train(TINY, data, tmp_path / "run", device="cpu", log_every=2)
    for line, rate in zip(log(tmp_path / "run"), (1e15, 2e15, 2e15), strict=True):
        assert line["share"] == pytest.approx(line["clips_per_s"] * operations_per_clip(TINY) / rate)
    assert "the matrix rate changed from 1000000 to 2000000 GFLOP/s" in caplog.text


def test_a_share_above_one_is_not_logged(data, tmp_path, monkeypatch):
    rates(monkeypatch, 1.0)  # as if measured on a machine that was busy with something else
    train(TINY, data, tmp_path / "run", device="cpu", log_every=2)
    assert all("share" not in line for line in log(tmp_path / "run"))


def test_the_meters_of_tokens_are_computed_in_logged_steps_only(data, tmp_path, monkeypatch):
    calls = []
    meters = step.token_meters
    monkeypatch.setattr(step, "token_meters", lambda tokens: calls.append(1) or meters(tokens))
    train(TINY, data, tmp_path / "run", device="cpu", log_every=3)
    assert len(calls) == 2


def test_metrics_do_not_change_the_training(data, tmp_path, weights):
    train(TINY, data, tmp_path / "often", device="cpu", log_every=1)
    train(TINY, data, tmp_path / "rarely", device="cpu", log_every=6)
    often, rarely = weights(tmp_path / "often"), weights(tmp_path / "rarely")
    assert all(torch.equal(often[name], rarely[name]) for name in often)
    assert log(tmp_path / "often")[-1]["loss"] == log(tmp_path / "rarely")[-1]["loss"]


def test_a_batch_in_parts_has_the_rank_of_the_whole(data, tmp_path):
    train(TINY, data, tmp_path / "whole", device="cpu", log_every=1)
    train(TINY, data, tmp_path / "parts", device="cpu", log_every=1, micro_batch_size=3)
    whole, parts = ([line["rankme"] for line in log(tmp_path / name)] for name in ("whole", "parts"))
    assert max(whole) > 1.5
    np.testing.assert_allclose(parts, whole, rtol=1e-3)


def test_measuring_the_rate_leaves_the_callers_random_state_alone():
    before = torch.get_rng_state()
    assert MatrixRate(torch.device("cpu"), "float32").measure()[1] > 0
    assert torch.equal(torch.get_rng_state(), before)
