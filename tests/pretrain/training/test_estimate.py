"""What a dry run says equals what a network has and does."""

import dataclasses
import importlib.util
import math
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel  # MATH: products that torch counts
from torch.utils.flop_counter import FlopCounterMode

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.m2d_x import M2DX
from hear_m2d.pretrain.objectives.teacher import Teacher
from hear_m2d.pretrain.recipe import Recipe, load_recipe, replace_fields
from hear_m2d.pretrain.training.estimate import (
    describe_plan,
    make_plan,
    memory,
    operations_per_clip,
    parameters,
)
from hear_m2d.pretrain.training.step import make_optimizer

CPU = torch.device("cpu")


SMALL = Recipe(
    objective="m2d",
    encoder=EncoderConfig(width=96, depth=4, heads=3, input_size=(80, 208)),
    decoder=DecoderConfig(width=64, depth=2, heads=2),
    batch_size=8,
    steps=10,
)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("m2d_base", (85_254_144, 26_008_320, 85_056_000)),
        ("msm_mae_base_608", (85_254_144, 7_492_864, 0)),
        ("msm_mae_base_208", (85_254_144, 7_492_864, 0)),
        ("m2d_as_base", (85_254_144, 26_008_320 + 527 * 3841, 85_056_000)),
    ],
)
def test_parameters_are_those_of_the_published_networks(name, counts):
    recipe = load_recipe(name)
    if recipe.offline.source == "labels":
        recipe = replace_fields(recipe, {"offline.features": 527})  # AudioSet's
    assert parameters(recipe) == counts


def test_the_published_run_has_the_published_number_of_steps():
    assert make_plan(load_recipe("m2d_base")).steps == 293_700
    assert make_plan(load_recipe("m2d_s_608")).steps == 137_000
    assert make_plan(load_recipe("m2d_base"), clips=4096).steps == 600


@pytest.mark.parametrize("offline", ["labels", "features", "teacher"])
def test_operations_of_m2d_x_equal_those_that_torch_counts(offline):
    recipe = replace_fields(SMALL, {"offline.source": offline, "offline.features": 480})
    sizes = EncoderConfig(input_size=(80, 104), width=96, depth=2, heads=3, patch_size=(16, 8))
    sizes = dataclasses.replace(sizes, input_size=(80, 208), patch_size=(16, 16))
    objective = build_objective(recipe)
    assert isinstance(objective, M2DX)
    objective.teacher = Teacher(HearModel(ModelConfig(encoder=sizes)), mean=0.0, std=1.0)
    patches = math.prod(recipe.encoder.grid)
    batch = {"x": torch.randn(1, 1, 80, 208), "target": torch.zeros(1, *objective.offline_shape)}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        target = objective.offline_target(batch)
        objective(batch["x"], torch.rand(1, patches), target).loss.backward()
    unneeded = patches * 256 * 96 * 2  # the gradient of the input, which torch leaves out
    assert operations_per_clip(recipe, sizes) == counter.get_total_flops() + unneeded


@pytest.mark.parametrize("objective", ["m2d", "msm_mae"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_of_a_clip_is_within_a_tenth_of_what_the_backward_pass_keeps(objective, precision):
    recipe = SMALL
    if objective == "msm_mae":
        recipe = dataclasses.replace(SMALL, objective=objective, mask_ratio=0.75, norm_pix_loss=False)
    network = build_objective(recipe)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    clips = 16
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        outcome = network(torch.randn(clips, 1, 80, 208), torch.rand(clips, 65))
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    copies = 2 * learned if precision == "bfloat16" else 0  # of the weights, which stay
    measured = (sum(kept.values()) - copies) / clips + 80 * 208 * 4  # and the clip itself
    assert outcome.loss.requires_grad
    _, estimated = memory(recipe, precision=precision)
    assert measured / 1.1 < estimated < measured * 1.1


def test_memory_that_stays_is_that_of_weights_gradients_moments_and_target():
    recipe = SMALL
    network = build_objective(recipe)
    optimizer = make_optimizer(network, recipe)
    network(torch.randn(2, 1, 80, 208), torch.rand(2, 65)).loss.backward()
    optimizer.step()
    held = [*network.parameters(), *(p.grad for p in network.parameters() if p.grad is not None)]
    held += [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in held)
    estimated, _ = memory(recipe, precision="float32")
    assert estimated == measured


def test_time_follows_from_the_rate_and_the_share_that_it_names():
    recipe = SMALL
    plan = make_plan(recipe, device=CPU)
    lines = list(describe_plan(recipe, plan, CPU, rate=1e9))
    step = 8 * plan.operations / (1e9 * 0.65)
    assert any(f"share of 0.65 of 1 GFLOP/s (given, cpu): {step:.3g} s a step" in line for line in lines)
    assert plan.hours(1e9 * 0.65, 8) == pytest.approx(10 * step / 3600)


def test_a_printed_recipe_is_a_recipe(tmp_path):
    recipe = load_recipe("m2d_x_further")
    lines = list(describe_plan(recipe, make_plan(recipe), CPU, rate=1e12))
    path = tmp_path / "printed.toml"
    end = next(index for index, line in enumerate(lines) if line.startswith("peak learning rate"))
    path.write_text("\n".join(lines[:end]))
    assert load_recipe(path) == recipe
    assert any("name one by --init or offline.teacher" in line for line in lines)
    recipe = load_recipe("m2d_as_base")
    lines = list(describe_plan(recipe, make_plan(recipe), CPU, rate=1e12))
    assert any("not counted: the offline predictor; --data says how many labels" in line for line in lines)


def test_too_few_clips_for_a_batch_are_reported():
    recipe = dataclasses.replace(SMALL, steps=None, epochs=3)
    lines = list(describe_plan(recipe, make_plan(recipe, clips=7), CPU, rate=1e9))
    assert any("7 clips (of the data) are fewer than one batch" in line for line in lines)
    lines = list(describe_plan(recipe, make_plan(recipe), CPU, rate=1e9))
    assert any("--data says how many clips" in line for line in lines)


def test_a_named_teacher_is_counted_and_one_that_does_not_fit_refused(tmp_path):
    path = tmp_path / "teacher.safetensors"
    recipe = replace_fields(SMALL, {"offline.source": "teacher", "offline.teacher": str(path)})
    for patch in ((16, 16), (16, 8)):
        encoder = EncoderConfig(input_size=(80, 208), width=96, depth=2, heads=3, patch_size=patch)
        save_checkpoint(path, HearModel(ModelConfig(encoder=encoder)))
        if patch == (16, 16):
            plan, plain = make_plan(recipe), make_plan(SMALL)
            assert plan.predictor - plain.predictor == 480 * 481
            assert plan.operations > plain.operations
        else:
            with pytest.raises(ValueError, match="26 columns of 208 frames"):
                make_plan(recipe)


def test_the_page_of_recipes_has_the_tables_that_the_recipes_give(repo_root, monkeypatch):
    path = repo_root / "benchmarks" / "recipes.py"
    spec = importlib.util.spec_from_file_location("benchmark_recipes", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    page = (repo_root / "docs" / "recipes.md").read_text()
    for table in script.tables():
        assert table in page, (
            "type: python benchmarks/recipes.py, and put what it prints into docs/recipes.md"
        )
