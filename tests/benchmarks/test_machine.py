"""The operations behind the published shares equal those that torch counts while a network runs."""

import importlib.util
import math
import re
import sys
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel  # MATH: products that torch counts
from torch.utils.flop_counter import FlopCounterMode

from hear_m2d.model.encoder import EncoderConfig, SpectrogramEncoder, encoder_operations
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.estimate import operations_per_clip


@pytest.fixture
def script(repo_root, monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(repo_root / "benchmarks")
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{name}", repo_root / "benchmarks" / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_embedding_operations_equal_those_that_torch_counts():
    config = EncoderConfig(input_size=(80, 96), width=64, depth=2, heads=2)
    encoder = SpectrogramEncoder(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoder(torch.randn(1, 1, 80, 64))
    assert encoder_operations(config, 4) == counter.get_total_flops()


@pytest.mark.parametrize("objective", ["m2d", "msm_mae"])
def test_training_operations_equal_those_that_torch_counts(objective):
    recipe = Recipe(
        objective=objective,
        decoder=DecoderConfig(width=32, depth=1, heads=2),
        encoder=EncoderConfig(width=64, depth=2, heads=2, input_size=(80, 96)),
        steps=1,
    )
    network = build_objective(recipe)
    patches = math.prod(recipe.encoder.grid)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.randn(1, 1, 80, 96), mask_noise(0, 0, 1, patches)).loss.backward()
    # The input needs no gradient, so torch leaves out one product that "twice the forward" counts.
    unneeded = patches * 256 * 64 * 2
    assert operations_per_clip(recipe) == counter.get_total_flops() + unneeded


def test_a_peak_is_that_of_the_measured_work(script):
    machine = script("machine")
    device = torch.device("cpu")
    block = torch.ones(64 * 2**20)  # 256 MiB
    del block
    machine.reset_peak(device)
    small = machine.peak_memory(device)
    block = torch.ones(64 * 2**20)
    assert machine.peak_memory(device) - small > 200
    del block


def test_the_embedding_benchmark_sets_each_precision_beside_the_first(script, monkeypatch, capsys):
    benchmark = script("embed")
    rates = {torch.float32: 1e9, torch.bfloat16: 2e9}
    monkeypatch.setattr(sys.modules["machine"], "matrix_rate", lambda dtype, device: rates[dtype])
    sizes = ["--size", "tiny", "--frames", "64", "--seconds", "0.5", "--batch", "2", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["embed.py", *sizes, "--device", "cpu"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a CPU without bfloat16
        benchmark.main()
    *table, sentence = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[1] for line in table if line.startswith("| ")] == ["dtype", "float32", "bfloat16"]
    found = re.fullmatch(
        r"bfloat16: ([\d.]+) times .* ([\d.]+) of the 2.00 that .* similarity at least ([\d.]+)", sentence
    )
    assert float(found[2]) == pytest.approx(float(found[1]) / 2, abs=0.01)
    assert 0.999 <= float(found[3]) <= 1.0
