"""M2D-X equals the published one; M2D-AS equals its definition; teachers that do not fit are refused."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.checkpoint.format import read_tensors, save_checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.objectives.build import build_objective, hear_model
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.m2d_x import M2DX
from hear_m2d.pretrain.objectives.masking import random_mask
from hear_m2d.pretrain.objectives.teacher import Teacher, with_offline
from hear_m2d.pretrain.recipe import Recipe, replace_fields
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.state import STATE_KEY


@pytest.fixture
def published(objective_fixture, weights_of, sizes_of):
    arrays, s = objective_fixture("m2d_x_objective")
    objective = M2DX(
        *sizes_of(s),
        offline="features",
        offline_features=s["off"],
        mask_ratio=s["mask_ratio"],
        norm_pix_loss=s["norm_pix_loss"],
    )
    objective.load_state_dict(weights_of(arrays, "w/"))
    return objective, arrays, s


def step(objective, arrays):
    return objective(
        torch.from_numpy(arrays["input"]),
        torch.from_numpy(arrays["noise"]),
        torch.from_numpy(arrays["offline_target"]),
    )


@pytest.mark.parametrize("variant", ["s", "x"])
def test_losses_and_predictions_equal_the_published(published, variant):
    objective, arrays, s = published
    objective.online_weight, objective.offline_weight = s[variant]["loss_m2d"], s[variant]["loss_off"]
    outcome = step(objective, arrays)
    assert outcome.loss.item() == pytest.approx(float(arrays[f"{variant}/loss"]), abs=1e-5)
    for name in ("loss_online", "loss_offline"):
        assert outcome.meters[name].item() == pytest.approx(float(arrays[f"{variant}/{name}"]), abs=1e-5)
    np.testing.assert_allclose(outcome.predicted.detach(), arrays["pred"], atol=2e-5)


@pytest.mark.parametrize("variant", ["s", "x"])
def test_gradients_equal_the_published(published, variant, name_of):
    objective, arrays, s = published
    objective.online_weight, objective.offline_weight = s[variant]["loss_m2d"], s[variant]["loss_off"]
    step(objective, arrays).loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    keys = [k for k in arrays.files if k.startswith(f"{variant}/g/")]
    assert len(keys) > 2
    for key in keys:
        expected = arrays[key]
        np.testing.assert_allclose(
            gradients[name_of(key[4:])], expected, atol=1e-4 * np.abs(expected).max(), err_msg=key
        )
    names = [name_of(str(name)) for name in arrays[f"{variant}/grad_names"]]
    assert set(names) == set(gradients)
    norms = [float(gradients[name].norm()) for name in names]
    np.testing.assert_allclose(norms, arrays[f"{variant}/grad_norms"], rtol=1e-4)
    total = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    assert total == pytest.approx(float(arrays[f"{variant}/grad_norm_global"]), rel=1e-4)


SMALL = Recipe(
    objective="m2d",
    encoder=EncoderConfig(width=64, depth=1, heads=1, input_size=(80, 48), patch_size=(16, 8)),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    steps=1,
)


def recipe_of(**fields):
    """The small recipe with other values; `offline__source` stands for offline.source."""
    return replace_fields(SMALL, {name.replace("__", "."): value for name, value in fields.items()})


def save_teacher(path, *, frames=48, patch=(16, 8), rate=16000, std=3.0):
    torch.manual_seed(5)
    encoder = EncoderConfig(input_size=(80, frames), patch_size=patch, width=64, depth=1, heads=1)
    frontend = FrontendConfig.for_rate(rate)
    save_checkpoint(path, HearModel(ModelConfig(encoder=encoder, frontend=frontend, mean=-6.0, std=std)))
    return str(path)


def test_the_student_columns_hold_each_patch_where_it_belongs():
    objective = build_objective(recipe_of(offline__source="features", offline__features=3))
    rows, columns = objective.encoder.config.grid
    mask = random_mask(torch.rand(2, rows * columns), 0.7)
    z = torch.cat([torch.full((2, 1, 64), -1.0), mask.visible[..., None].expand(-1, -1, 64).float()], dim=1)
    predicted = mask.masked[..., None].expand(-1, -1, 64).float()
    actual = objective.student_columns(z, predicted, mask)
    for row in range(rows):
        for column in range(columns):
            assert (actual[:, column, row * 64 : (row + 1) * 64] == row * columns + column).all()


def test_m2d_as_is_the_cross_entropy_of_the_mean_over_columns():
    objective = build_objective(
        recipe_of(offline__source="labels", offline__features=4, offline__offline_weight=0.5)
    )
    x, noise = torch.randn(3, 1, 80, 48), torch.rand(3, 30)
    labels = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    outcome = objective(x, noise, objective.offline_target({"x": x, "target": labels}))
    tokens, mask, z, predicted = objective.online(x, noise)
    grid = torch.zeros(3, 30, 64)
    for clip in range(3):
        for place, patch in enumerate(mask.visible[clip]):
            grid[clip, patch] = z[clip, 1 + place]
        for place, patch in enumerate(mask.masked[clip]):
            grid[clip, patch] = predicted[clip, place]
    layer, total = objective.offline_predictor, 0.0
    for clip in range(3):
        logits = torch.zeros(4)
        for column in range(6):
            stacked = torch.cat([grid[clip, row * 6 + column] for row in range(5)])
            logits = logits + (layer.weight @ stacked + layer.bias) / 6
        p = torch.sigmoid(logits)
        total -= (labels[clip] * p.log() + (1 - labels[clip]) * (1 - p).log()).sum() / 12
    assert outcome.meters["loss_offline"].item() == pytest.approx(total.item(), abs=1e-5)
    online = objective.compare(predicted, objective.targets(tokens, mask))
    assert outcome.loss.item() == pytest.approx(online.item() + 0.5 * total.item(), abs=1e-5)


def test_the_teacher_hears_the_clean_clip_and_the_student_the_mixture(tmp_path):
    name = save_teacher(tmp_path / "teacher.safetensors")
    recipe, teacher = with_offline(
        recipe_of(offline__source="teacher", offline__teacher=name), mean=-7.0, std=4.0
    )
    assert recipe.offline.features == 320
    objective = build_objective(recipe)
    objective.teacher = teacher
    x, clean = torch.randn(2, 1, 80, 48), torch.randn(2, 1, 80, 48)
    target = objective.offline_target({"x": x, "clean": clean})
    tokens = teacher.encoder(clean).reshape(2, 5, 6, 64)
    expected = torch.stack([tokens[:, :, c].flatten(1) for c in range(6)], dim=1)
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(objective.offline_target({"x": clean}), expected)
    noise = torch.rand(2, 30)
    outcome = objective(x, noise, target)
    torch.testing.assert_close(outcome.latent, objective.online(x, noise)[2])


def test_the_teacher_is_not_trained_saved_or_drawn_at_random(tmp_path):
    name = save_teacher(tmp_path / "teacher.safetensors")
    recipe, teacher = with_offline(
        recipe_of(offline__source="teacher", offline__teacher=name), mean=-7.0, std=4.0
    )
    objective = build_objective(recipe)
    before = {name: t.clone() for name, t in objective.state_dict().items()}
    objective.teacher = teacher
    objective.train()
    assert objective.state_dict().keys() == before.keys()
    assert not teacher.encoder.training
    assert not any(p.requires_grad for p in teacher.encoder.parameters())
    weights = copy.deepcopy(teacher.encoder.state_dict())
    x = torch.randn(2, 1, 80, 48)
    objective(x, torch.rand(2, 30), objective.offline_target({"x": x})).loss.backward()
    assert all(torch.equal(t, weights[n]) for n, t in teacher.encoder.state_dict().items())
    assert copy.deepcopy(objective).teacher is teacher  # frozen: one will do


def test_a_teacher_with_its_own_statistics_hears_what_it_was_trained_on(tmp_path):
    name = save_teacher(tmp_path / "teacher.safetensors", std=3.0)
    asked = recipe_of(offline__source="teacher", offline__teacher=name, offline__teacher_statistics="own")
    _, teacher = with_offline(asked, mean=-7.0, std=4.0)
    logmel = torch.randn(1, 1, 80, 48) * 4 - 7
    actual = teacher.columns((logmel + 7.0) / 4.0)
    _, plain = with_offline(recipe_of(offline__source="teacher", offline__teacher=name), mean=-6.0, std=3.0)
    torch.testing.assert_close(actual, plain.columns((logmel + 6.0) / 3.0), atol=1e-4, rtol=1e-4)


def test_a_teacher_of_shorter_windows_hears_one_after_another(tmp_path):
    name = save_teacher(tmp_path / "teacher.safetensors", frames=32)
    _, teacher = with_offline(recipe_of(offline__source="teacher", offline__teacher=name), mean=0.0, std=1.0)
    x = torch.randn(1, 1, 80, 48)
    first = teacher.columns(x[..., :32])
    torch.testing.assert_close(teacher.columns(x)[:, :4], first)
    assert teacher.columns(x).shape == (1, 6, 320)


def test_the_checkpoint_of_init_is_the_teacher_by_default(tmp_path):
    name = save_teacher(tmp_path / "teacher.safetensors")
    _, teacher = with_offline(recipe_of(offline__source="teacher", init=name), mean=0.0, std=1.0)
    assert teacher is not None


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"patch": (16, 16)}, "3 columns of 48 frames .* the student 6"),
        ({"patch": (16, 4)}, "12 columns of 48 frames .* the student 6"),
        ({"rate": 32000}, "hears 32000 Hz, the recipe has sample_rate = 16000"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, teacher, message):
    name = save_teacher(tmp_path / "teacher.safetensors", **teacher)
    with pytest.raises(ValueError, match=message):
        with_offline(recipe_of(offline__source="teacher", offline__teacher=name), mean=0.0, std=1.0)


@pytest.mark.parametrize(
    ("recipe", "shape", "message"),
    [
        ({"offline__source": "teacher"}, None, "give --set offline.teacher=CHECKPOINT, or --init"),
        ({"offline__source": "labels"}, None, "needs one number a class .* the data has nothing"),
        ({"offline__source": "labels"}, (6, 768), r"the data has targets of shape \[6, 768\]"),
        ({"offline__source": "labels", "offline__features": 527}, (50,), "527, but the data has 50"),
        ({"offline__source": "features"}, (12, 768), "12 columns of features, the recipe 6"),
    ],
)
def test_data_that_does_not_fit_is_refused(recipe, shape, message):
    with pytest.raises(ValueError, match=message):
        with_offline(recipe_of(**recipe), mean=0.0, std=1.0, target_shape=shape)


@pytest.mark.parametrize(("offline", "shape"), [("labels", (50,)), ("features", (6, 96))])
def test_the_data_says_how_many_classes_or_features_there_are(offline, shape):
    recipe, teacher = with_offline(recipe_of(offline__source=offline), mean=0.0, std=1.0, target_shape=shape)
    assert teacher is None
    assert recipe.offline.features == shape[-1]
    assert build_objective(recipe).offline_shape == shape


def test_an_offline_target_of_another_shape_is_refused():
    objective = build_objective(recipe_of(offline__source="features", offline__features=4))
    x, noise = torch.randn(1, 1, 80, 48), torch.rand(1, 30)
    for target in (None, torch.zeros(1, 6, 5), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match=r"not \[6, 4\]"):
            objective(x, noise, target)


@pytest.mark.parametrize(("offline", "kind"), [("labels", "m2d_as"), ("features", "m2d_s"), ("", "m2d")])
def test_the_checkpoint_says_which_objective_it_is_of(offline, kind):
    recipe = recipe_of(offline__source=offline, offline__features=2 if offline else 0)
    model = hear_model(build_objective(recipe), recipe, mean=-7.0, std=4.0, training={})
    assert model.config.kind == kind


def test_the_weights_that_m2d_shares_do_not_depend_on_the_offline_task():
    plain = build_objective(recipe_of()).state_dict()
    extended = build_objective(recipe_of(offline__source="labels", offline__features=2)).state_dict()
    assert extended.keys() - plain.keys() == {"offline_predictor.weight", "offline_predictor.bias"}
    assert all(torch.equal(extended[name], tensor) for name, tensor in plain.items())


def test_a_student_may_be_taught_by_its_own_recipe_twice_as_wide():
    model = HearModel(ModelConfig(encoder=dataclasses.replace(recipe_of(encoder__width=128).encoder)))
    teacher = Teacher(model, mean=0.0, std=1.0)
    assert teacher.features == 640
    assert teacher.columns(torch.randn(1, 1, 80, 48)).shape == (1, 6, 640)


def test_a_run_with_a_teacher_continues_exactly_without_its_init(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for number in range(5):
        sound = 0.1 * rng.standard_normal(12000)
        soundfile.write(tmp_path / "audio" / f"{number}.wav", sound, 16000)
    prepare(tmp_path / "audio", tmp_path / "data")
    data = LogMelData(tmp_path / "data")
    init = save_teacher(tmp_path / "init.safetensors")
    recipe = recipe_of(
        offline__source="teacher",
        offline__teacher=save_teacher(tmp_path / "teacher.safetensors", std=2.0),
        init=init,
        noise_ratio=0.3,
        steps=4,
        batch_size=2,
        optimizer__base_lr=0.1,
        precision="float32",
    )
    train(recipe, data, tmp_path / "whole", noise=data, save_every=2, keep_last=9, device="cpu")
    (tmp_path / "killed").mkdir()
    for name in ("run.json", "metrics.jsonl", "state-2.safetensors"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "killed" / name)
    (tmp_path / "init.safetensors").unlink()
    train(recipe, data, tmp_path / "killed", noise=data, save_every=2, keep_last=9, device="cpu")
    whole, killed = (
        read_tensors(tmp_path / run / "state-4.safetensors", STATE_KEY)[0] for run in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert "model.offline_predictor.weight" in whole
    assert not any("teacher" in name for name in whole)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    started = (
        build_objective(replace_fields(recipe, {"offline.features": 320})).encoder.blocks[0].attn.qkv.weight
    )
    assert not torch.allclose(whole["model.encoder.blocks.0.attn.qkv.weight"], started, atol=0.1)


@pytest.mark.parametrize(("offline", "xavier"), [("teacher", True), ("labels", True), ("features", False)])
def test_the_offline_predictor_starts_as_published(offline, xavier):
    layer = build_objective(recipe_of(offline__source=offline, offline__features=8)).offline_predictor
    assert bool((layer.bias == 0).all()) == xavier  # PyTorch's default draws the bias too
    if xavier:
        bound = (6 / (320 + 8)) ** 0.5
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
