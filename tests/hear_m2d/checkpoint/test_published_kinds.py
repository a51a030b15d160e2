"""Published files beyond plain M2D: the first MSM-MAE, fine-tuned classifiers, resampled positions."""

import json

import numpy as np
import pytest
import torch

import hear_m2d

MSM_MAE = {"d": "80x208p16x16_fxd", "d2": "80x200p16x4_fxd2"}
FINE_TUNED = "m2d_vit_base-80x201p16x16-221006-fxf"
RESIZED = "m2d_vit_base-80x208p16x16-220930-fxa2"
ATOL = 5e-5


def opened(fixtures_dir, folder):
    (path,) = (fixtures_dir / folder).glob("*.pth")
    settings = json.loads((fixtures_dir / folder / "settings.json").read_text())
    return path, np.load(fixtures_dir / folder / "expected.npz"), settings


def clips(arrays):
    return [(i, torch.from_numpy(arrays[f"wav{i}"])) for i in range(9) if f"wav{i}" in arrays.files]


@pytest.mark.parametrize("folder", MSM_MAE.values(), ids=MSM_MAE)
def test_the_first_msm_mae_equals_its_authors_code_in_full(folder, fixtures_dir):
    path, arrays, _ = opened(fixtures_dir, folder)
    model = hear_m2d.load_model(path, windows="published", normalization="batch")
    assert (model.config.kind, model.config.code_base) == ("msm_mae", "msm_mae")
    assert (model.encoder.cls_token is None) == (folder == MSM_MAE["d2"])
    for i, audio in clips(arrays):
        np.testing.assert_allclose(model.columns(audio), arrays[f"frames{i}"], atol=ATOL, rtol=0)
        scene = hear_m2d.get_scene_embeddings(audio, model)
        np.testing.assert_allclose(scene, arrays[f"scene{i}"], atol=ATOL, rtol=0)
    alone = model.columns(clips(arrays)[0][1][:1])
    np.testing.assert_allclose(alone, arrays["frames0_first_clip_alone"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("folder", MSM_MAE.values(), ids=MSM_MAE)
def test_with_fixed_statistics_the_first_msm_mae_equals_its_authors_code(folder, fixtures_dir):
    path, arrays, settings = opened(fixtures_dir, folder)
    mean, std = settings["fixed_stats"]
    model = hear_m2d.load_model(path, windows="published", mean=mean, std=std)
    checked = 0
    for i, audio in clips(arrays):
        if f"fixed_frames{i}" in arrays.files:
            np.testing.assert_allclose(model.columns(audio), arrays[f"fixed_frames{i}"], atol=ATOL, rtol=0)
            checked += 1
    assert checked


def test_by_default_a_clip_of_the_first_msm_mae_does_not_depend_on_its_mates(fixtures_dir, noise):
    path, _, _ = opened(fixtures_dir, MSM_MAE["d"])
    model = hear_m2d.load_model(path)
    clip = noise(1, 40000)
    beside = model.columns(torch.cat([clip, noise(1, 40000, scale=1.0, seed=1)]))[:1]
    torch.testing.assert_close(model.columns(clip), beside, atol=1e-5, rtol=0)


def test_batch_statistics_of_silence_are_finite(fixtures_dir):
    path, _, _ = opened(fixtures_dir, MSM_MAE["d"])
    model = hear_m2d.load_model(path, normalization="batch")
    assert model.columns(torch.zeros(2, 16000)).isfinite().all()


def test_a_fine_tuned_file_equals_its_authors_code_with_its_classifier(fixtures_dir):
    path, arrays, settings = opened(fixtures_dir, FINE_TUNED)
    model = hear_m2d.load_model(path, windows="published")
    assert len(model.labels) == settings["classes"]
    assert not model.training
    for i, audio in clips(arrays):
        np.testing.assert_allclose(model.columns(audio), arrays[f"frames{i}"], atol=ATOL, rtol=0)
    logits = model.classify(clips(arrays)[0][1]).detach()
    np.testing.assert_allclose(logits, arrays["logits0"], atol=ATOL, rtol=0)


def test_by_default_no_frame_falls_between_windows_of_an_odd_length(fixtures_dir, noise):
    path, _, _ = opened(fixtures_dir, FINE_TUNED)
    audio = noise(1, 160 * 600)
    changed = audio.clone()
    changed[:, 160 * 196 : 160 * 197] += 0.5  # frame 196, of those that the published windows skip
    whole, published = (hear_m2d.load_model(path, windows=w) for w in ("whole", "published"))
    assert not torch.equal(whole.columns(audio), whole.columns(changed))
    assert whole.columns(audio).shape[1] == 38  # ceil(601 / 16)
    assert published.columns(audio).shape[1] == 36 + 0  # three windows of 12


@pytest.mark.parametrize("tag", ["longer", "shorter"])
def test_positions_resized_to_one_window_equal_the_published(tag, fixtures_dir):
    path, arrays, settings = opened(fixtures_dir, RESIZED)
    (frames,) = [frames for name, frames, _ in settings["dur"] if name == tag]
    model = hear_m2d.load_model(path, dur_frames=frames)
    np.testing.assert_allclose(model.encoder.pos_embed, arrays[f"dur{tag}_pos_embed"], atol=1e-6, rtol=0)
    columns = model.columns(torch.from_numpy(arrays[f"dur{tag}_wav"]))
    expected = arrays[f"dur{tag}_frames"]
    np.testing.assert_allclose(columns[:, : expected.shape[1]], expected, atol=ATOL, rtol=0)
