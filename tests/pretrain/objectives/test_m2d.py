"""The M2D objective equals the published one: loss, predictions, targets, gradients, momentum, one step."""

import json

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.m2d import M2D
from hear_m2d.pretrain.objectives.masking import random_mask
from hear_m2d.pretrain.training.metrics import token_meters
from hear_m2d.pretrain.training.schedules import decay_groups

FIXTURES = ["m2d_objective", "m2d_objective_mse"]
LOSSES = {"norm_mse": "cosine", "mse": "mse"}


def tiny(**options):
    encoder = EncoderConfig(input_size=(80, 64), width=32, depth=2, heads=2)
    return M2D(encoder, DecoderConfig(width=16, depth=1, heads=2), **options)


@pytest.fixture(params=FIXTURES)
def published(request, objective_fixture, load_weights, sizes_of):
    arrays, s = objective_fixture(request.param)
    objective = M2D(
        *sizes_of(s),
        mask_ratio=s["mask_ratio"],
        norm_pix_loss=s["norm_pix_loss"],
        loss=LOSSES[s["loss_type"]],
    )
    load_weights(objective, arrays)
    return objective, arrays, s


def run(objective, arrays):
    return objective(torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["noise"]))


def test_loss_predictions_targets_and_latent_equal_the_published(published):
    objective, arrays, _ = published
    outcome = run(objective, arrays)
    assert outcome.loss.item() == pytest.approx(float(arrays["loss"]), abs=1e-5)
    np.testing.assert_allclose(outcome.predicted.detach(), arrays["pred"], atol=2e-5)
    np.testing.assert_allclose(outcome.target, arrays["target"], atol=2e-5)
    np.testing.assert_allclose(outcome.latent.detach(), arrays["latent"], atol=2e-5)


def test_mask_equals_the_published(published):
    objective, arrays, s = published
    mask = random_mask(torch.from_numpy(arrays["noise"]), objective.mask_ratio)
    assert mask.visible.shape[1] == s["len_keep"]
    np.testing.assert_array_equal(mask.restore(), arrays["ids_restore"])
    np.testing.assert_array_equal(mask.as_grid(), arrays["mask"])


def test_all_four_losses_equal_the_published(published):
    objective, arrays, _ = published
    for name, expected in json.loads(str(arrays["losses_4"])).items():
        loss, norm_pix = name.split("/norm_pix=")
        objective.loss, objective.norm_pix_loss = LOSSES[loss], norm_pix == "1"
        assert run(objective, arrays).loss.item() == pytest.approx(expected, abs=1e-5), name


def test_gradients_equal_the_published(published, name_of):
    objective, arrays, _ = published
    run(objective, arrays).loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert all(g is not None for g in gradients.values())
    for key in [k for k in arrays.files if k.startswith("g/")]:
        expected = arrays[key]
        np.testing.assert_allclose(
            gradients[name_of(key[2:])], expected, atol=1e-4 * np.abs(expected).max(), err_msg=key
        )
    names = [name_of(str(name)) for name in arrays["grad_names"]]
    norms = [float(gradients[name].norm()) for name in names]
    np.testing.assert_allclose(norms, arrays["grad_norms"], rtol=1e-4)
    assert set(names) == set(gradients)


def test_no_gradient_reaches_the_target(published):
    objective, arrays, _ = published
    run(objective, arrays).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.target.parameters())


def test_momentum_update_equals_the_published(published, weights_of):
    objective, arrays, s = published
    online = {n: p.clone() for n, p in objective.encoder.named_parameters()}
    objective.momentum_update(s["ema"])
    state = objective.state_dict()
    for name, expected in weights_of(arrays, "ema/").items():
        np.testing.assert_allclose(state[name], expected, atol=5e-6, err_msg=name)
    for name, value in online.items():
        assert torch.equal(value, dict(objective.encoder.named_parameters())[name])


def test_a_whole_training_step_equals_the_published(published, weights_of):
    objective, arrays, s = published
    groups = decay_groups(objective, s["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=s["lr"], betas=tuple(s["betas"]), eps=s["adam_eps"])
    run(objective, arrays).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), s["clip_grad"])
    optimizer.step()
    objective.momentum_update(s["ema"])
    assert float(norm) == pytest.approx(float(arrays["step_grad_norm_before_clip"]), rel=1e-4)
    state = objective.state_dict()
    for name, expected in weights_of(arrays, "step/").items():
        atol = 1e-6 if name.startswith("target") else 5e-6
        np.testing.assert_allclose(state[name], expected, atol=atol, err_msg=name)
    assert run(objective, arrays).loss.item() == pytest.approx(float(arrays["loss_after_step"]), abs=2e-5)


def test_target_never_sees_a_visible_patch():
    objective = tiny()
    noise = torch.rand(2, 20)
    tokens = torch.randn(2, 20, 32)
    mask = random_mask(noise, 0.7)
    before = objective.targets(tokens, mask)
    changed = tokens.scatter(1, mask.visible[..., None].expand(-1, -1, 32), 9.0)
    assert torch.equal(objective.targets(changed, mask), before)


def test_target_that_sees_all_patches_depends_on_visible_ones():
    objective = tiny(target_input="all")
    tokens = torch.randn(2, 20, 32)
    mask = random_mask(torch.rand(2, 20), 0.7)
    changed = tokens.scatter(1, mask.visible[..., None].expand(-1, -1, 32), 9.0)
    before, after = objective.targets(tokens, mask), objective.targets(changed, mask)
    assert before.shape == (2, 14, 32)
    assert not torch.allclose(before, after)


def test_what_all_target_tokens_have_in_common_does_not_change_a_batch_normed_loss():
    objective, plain = tiny(batch_norm_target=True), tiny()
    target = torch.randn(2, 14, 32)
    common = 5 * torch.randn(32)

    predicted = target.clone()

    def loss(objective, target):
        return objective.compare(predicted, objective.batch_normed(target)).item()

    assert loss(objective, target + common) == pytest.approx(loss(objective, target), abs=1e-5)
    assert loss(plain, target + common) != pytest.approx(loss(plain, target), abs=1e-2)


def test_a_batch_normed_target_has_mean_0_and_deviation_1_in_each_feature():
    target = tiny(batch_norm_target=True).batch_normed(3 + 2 * torch.randn(4, 14, 32))
    torch.testing.assert_close(target.mean((0, 1)), torch.zeros(32), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.std((0, 1), correction=0), torch.ones(32), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("init", "same"), [("random", False), ("online", True)])
def test_target_starts_as_asked(init, same):
    objective = tiny(target_init=init)
    online, target = objective.encoder.blocks.state_dict(), objective.target.blocks.state_dict()
    weights = [name for name in online if name.endswith("qkv.weight")]
    assert all(torch.equal(online[n], target[n]) == same for n in weights)


def test_without_a_class_token_every_visible_token_is_used():
    encoder = EncoderConfig(input_size=(80, 64), width=32, depth=1, heads=2, class_token=False)
    objective = M2D(encoder, DecoderConfig(width=16, depth=1, heads=2))
    x = torch.randn(1, 1, 80, 64, requires_grad=True)
    noise = torch.rand(1, 20)
    objective(x, noise).predicted.square().sum().backward()
    mask = random_mask(noise, 0.7)
    touched = x.grad.reshape(5, 16, 4, 16).abs().sum((1, 3)).flatten() > 0
    assert touched.nonzero().flatten().tolist() == sorted(mask.visible[0].tolist())


def test_meters_tell_collapsed_from_spread_targets():
    spread = token_meters(torch.randn(4, 50, 32))
    collapsed = token_meters(torch.randn(1, 1, 32).expand(4, 50, 32) + 1e-3 * torch.randn(4, 50, 32))
    assert spread["target_std"] > 0.9
    assert abs(spread["target_cosine"]) < 0.05
    assert collapsed["target_std"] < 0.01
    assert collapsed["target_cosine"] > 0.99
