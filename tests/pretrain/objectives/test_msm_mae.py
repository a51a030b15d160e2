"""The MSM-MAE objective equals the published ones: both code bases, 1-D and 2-D decoder positions."""

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig, patchify, unpatchify
from hear_m2d.pretrain.objectives.decoder import DecoderConfig, sinusoid_positions
from hear_m2d.pretrain.objectives.masking import random_mask
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE

FIXTURES = {"mae_in_m2d_objective": "2d", "msm_mae_objective": "1d", "msm_mae_objective_2d": "2d"}


@pytest.fixture(params=[(name, norm_pix) for name in FIXTURES for norm_pix in (False, True)])
def published(request, objective_fixture, load_weights, sizes_of):
    name, norm_pix = request.param
    arrays, s = objective_fixture(name)
    encoder, decoder = sizes_of(s, positions=FIXTURES[name])
    objective = MSMMAE(encoder, decoder, mask_ratio=s["mask_ratio"], norm_pix_loss=norm_pix)
    load_weights(objective, arrays)
    return objective, arrays, "norm_pix_on/" if norm_pix else "norm_pix_off/"


def inputs(arrays):
    return torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["noise"])


def test_loss_equals_the_published(published):
    objective, arrays, prefix = published
    outcome = objective(*inputs(arrays))
    assert outcome.loss.item() == pytest.approx(float(arrays[prefix + "loss"]), abs=1e-5)
    if "latent" in arrays.files:
        np.testing.assert_allclose(outcome.latent.detach(), arrays["latent"], atol=2e-5)


def test_predictions_and_mask_equal_the_published(published):
    objective, arrays, _ = published
    objective.norm_pix_loss = False
    painted, mask = objective.reconstruct(*inputs(arrays))
    np.testing.assert_allclose(painted, arrays["pred"], atol=2e-5)
    np.testing.assert_array_equal(mask.as_grid(), arrays["mask"])


def test_training_predicts_what_reconstruction_shows(published):
    objective, arrays, _ = published
    objective.norm_pix_loss = False
    x, noise = inputs(arrays)
    painted, mask = objective.reconstruct(x, noise)
    predicted = objective(x, noise).predicted.detach()
    for row in range(len(x)):
        torch.testing.assert_close(predicted[row], painted[row, mask.masked[row]], atol=2e-5, rtol=0)


def test_gradients_equal_the_published(published, name_of):
    objective, arrays, prefix = published
    objective(*inputs(arrays)).loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters()}
    for key in [k for k in arrays.files if k.startswith(prefix + "g/")]:
        expected, name = arrays[key], key.removeprefix(prefix + "g/")
        if name.endswith(("q_bias", "v_bias")):
            ours = gradients[name_of(name.replace("q_bias", "qkv.bias").replace("v_bias", "qkv.bias"))]
            third = len(ours) // 3
            ours = ours[:third] if name.endswith("q_bias") else ours[2 * third :]
        else:
            ours = gradients[name_of(name)]
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max(), err_msg=key)


def test_patches_are_cut_as_published(objective_fixture):
    arrays, s = objective_fixture("msm_mae_objective")
    x = torch.from_numpy(arrays["input"])
    cut = patchify(x, tuple(s["patch_size"]))
    np.testing.assert_array_equal(cut[:1], arrays["patches"])
    torch.testing.assert_close(unpatchify(cut, tuple(s["patch_size"]), rows=5), x)


def test_one_dimensional_positions_equal_the_published(fixtures_dir):
    tables = np.load(fixtures_dir / "pos_embed_1d_msm_mae.npz")
    checked = 0
    for name in tables.files:
        table = tables[name]
        if table.ndim not in (2, 3):
            continue
        table = table.reshape(-1, table.shape[-1])
        ours = sinusoid_positions(table.shape[1], len(table) - 1)
        np.testing.assert_allclose(ours, table[1:], atol=1e-6)
        checked += 1
    assert checked


def test_only_masked_patches_count():
    encoder = EncoderConfig(input_size=(80, 64), width=32, depth=1, heads=2)
    objective = MSMMAE(encoder, DecoderConfig(width=16, depth=1, heads=2))
    x, noise = torch.randn(2, 1, 80, 64), torch.rand(2, 20)
    outcome = objective(x, noise)
    mask = random_mask(noise, 0.75)
    assert outcome.predicted.shape == (2, mask.masked.shape[1], 256)
    by_hand = []
    for clip in range(2):
        for place, patch in enumerate(mask.masked[clip].tolist()):
            row, column = divmod(patch, 4)
            pixels = x[clip, 0, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].flatten()
            by_hand.append((outcome.predicted[clip, place] - pixels).square().mean())
    torch.testing.assert_close(outcome.loss, torch.stack(by_hand).mean())


def test_without_a_class_token_the_decoder_keeps_all_its_visible_tokens():
    encoder = EncoderConfig(input_size=(80, 64), width=32, depth=1, heads=2, class_token=False)
    objective = MSMMAE(encoder, DecoderConfig(width=16, depth=1, heads=2))
    x = torch.randn(1, 1, 80, 64, requires_grad=True)
    noise = torch.rand(1, 20)
    objective(x, noise).predicted.square().sum().backward()
    touched = x.grad.reshape(5, 16, 4, 16).abs().sum((1, 3)).flatten() > 0
    assert touched.nonzero().flatten().tolist() == sorted(random_mask(noise, 0.75).visible[0].tolist())
