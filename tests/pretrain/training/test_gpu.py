"""Training on a GPU equals training on a CPU (`make test-gpu`); with HEAR_M2D_TINY_GPU=1 on a CPU."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.data.crops import Crops
from hear_m2d.pretrain.data.loader import batches, mask_noise
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sampling import StepBatches
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.step import Trainer

DEVICE = "cpu" if os.environ.get("HEAR_M2D_TINY_GPU") else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here"),
]

M2D = Recipe(
    objective="m2d",
    encoder=EncoderConfig(input_size=(80, 96), width=96, depth=2, heads=3),
    decoder=DecoderConfig(width=64, depth=1, heads=2),
    optimizer=OptimizerConfig(base_lr=3e-3),
    momentum_start=0.99,
    momentum_end=0.999,
    batch_size=24,
    steps=8,
    compile=False,
    precision="float32",
)
RECIPES = {
    "m2d": M2D,
    "msm_mae": dataclasses.replace(M2D, objective="msm_mae", mask_ratio=0.75, norm_pix_loss=False),
}


def five_steps(recipe, device, precision, **options):
    """Return losses and gradient norms of five steps, (5, 2)."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    objective = build_objective(recipe).to(device, dtype)
    trainer = Trainer(objective, recipe, device=torch.device(device), precision=precision, **options)
    x = torch.randn(24, 1, 80, recipe.frames, generator=torch.Generator().manual_seed(1))
    batch = {
        "x": x.to(device, dtype),
        "noise": mask_noise(0, 0, 24, math.prod(recipe.encoder.grid)).to(device),
    }
    values = []
    for step in range(5):
        result = trainer.step(batch, rate=1e-3 * (step + 1), with_metrics=step == 4)
        objective.momentum_update(0.99)
        values.append([float(result.loss), float(result.norm)])
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for i in range(24):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(24000), 16000)
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(folder, out, progress=False)
    return LogMelData(out)


# AdamW's first steps enlarge rounding: the fifth step is compared less strictly than the first.
@pytest.mark.parametrize(("precision", "first", "fifth"), [("float64", 1e-11, 1e-7), ("float32", 2e-5, 2e-3)])
@pytest.mark.parametrize("objective", RECIPES)
def test_five_steps_are_those_of_the_cpu(objective, precision, first, fifth):
    here = five_steps(RECIPES[objective], "cpu", precision)
    there = five_steps(RECIPES[objective], DEVICE, precision)
    off = ((here - there) / here).abs().amax(1)
    assert float(off[0]) < first
    assert float(off.max()) < fifth


@pytest.mark.parametrize("objective", RECIPES)
def test_a_batch_in_parts_is_the_whole_batch(objective):
    whole = five_steps(RECIPES[objective], DEVICE, "float32")
    parts = five_steps(RECIPES[objective], DEVICE, "float32", micro_batch_size=7)
    torch.testing.assert_close(parts, whole, rtol=2e-3, atol=0)


def test_compiled_blocks_compute_the_same():
    if DEVICE == "cpu":
        pytest.skip("compiling takes minutes on a CPU; test_loop.py has this test")
    eager = five_steps(M2D, DEVICE, "float32")
    compiled = five_steps(dataclasses.replace(M2D, compile=True), DEVICE, "float32")
    torch.testing.assert_close(compiled, eager, rtol=2e-3, atol=0)


def test_batches_of_two_loader_processes_are_bit_for_bit_those_of_the_cpu(data):
    def stream(device, workers):
        steps = StepBatches(0, 4, batch_size=8, n_clips=len(data), seed=0)
        items = Crops(data, frames=96)
        return batches(
            items, steps, share=slice(0, 8), patches=30, device=torch.device(device), workers=workers
        )

    for there, here in zip(stream(DEVICE, 2), stream("cpu", 0), strict=True):
        assert there["x"].device.type == DEVICE
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name].cpu(), here[name]) for name in here)


def test_a_run_that_continues_has_the_losses_of_the_whole_run(data, tmp_path):
    options = {"device": DEVICE, "log_every": 1, "save_every": 4, "workers": 0}
    train(M2D, data, tmp_path / "whole", **options)
    train(M2D, data, tmp_path / "cut", **options)
    for name in ("checkpoint.safetensors", "objective.safetensors", "state-8.safetensors"):
        (tmp_path / "cut" / name).unlink()
    train(M2D, data, tmp_path / "cut", **options)
    whole, cut = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-2)
