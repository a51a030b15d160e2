"""The HEAR API as the official validator asks for it, and what loading a model leaves alone."""

import importlib
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig


@pytest.fixture(
    params=[((16, 16), 16000), ((16, 4), 16000), ((80, 2), 16000), ((16, 16), 32000), ((80, 4), 32000)]
)
def model(request, make_model):
    patch, rate = request.param
    return make_model(patch=patch, rate=rate)


def test_sizes_and_rate_are_python_ints(model):
    for value in (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size):
        assert type(value) is int
    assert model.sample_rate in (16000, 22050, 32000, 44100, 48000)
    assert isinstance(model, torch.nn.Module)


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0, 0.31, 0.05])
@pytest.mark.parametrize("option", ["interpolate", "dense"])
def test_timestamps_satisfy_the_validator(make_model, model, noise, seconds, option):
    patch, rate = model.config.encoder.patch_size, model.sample_rate
    model = make_model(patch=patch, rate=rate, options={"timestamps": option})
    embeddings, timestamps = hear_m2d.get_timestamp_embeddings(
        noise(2, int(seconds * rate), scale=1.0), model
    )
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.ndim == 3
    assert embeddings.shape[:2] == timestamps.shape
    assert embeddings.shape[0] == 2
    assert embeddings.shape[2] == model.timestamp_embedding_size
    assert torch.equal(timestamps[0], timestamps[1])
    times = timestamps[0].double().numpy()
    assert times[-1] <= 1000 * seconds
    if len(times) > 1:
        gaps = np.diff(times)
        assert gaps.max() <= 50
        assert np.abs(gaps - gaps.mean()).max() <= 1
        assert times[0] <= gaps.mean()
        assert times[-1] >= 1000 * seconds - gaps.mean()
    embeddings.detach().cpu().numpy()
    timestamps.detach().cpu().numpy()


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 200, 201])
def test_two_hundred_samples_still_embed_and_give_one_timestamp(model, noise, samples):
    audio = noise(3, samples, scale=1.0)
    scene = hear_m2d.get_scene_embeddings(audio, model)
    assert scene.shape == (3, model.scene_embedding_size)
    assert scene.isfinite().all()
    embeddings, timestamps = hear_m2d.get_timestamp_embeddings(audio, model)
    assert embeddings.isfinite().all()
    assert embeddings.shape[:2] == timestamps.shape
    assert timestamps.shape[1] >= 1


def test_scenes_are_float32_one_row_per_clip(model, noise):
    scene = hear_m2d.get_scene_embeddings(noise(4, int(2.74 * model.sample_rate)), model)
    assert scene.dtype == torch.float32
    assert scene.shape == (4, model.scene_embedding_size)


def test_embeddings_can_feed_a_trainable_head(model, noise):
    audio = noise(2, 8000)
    for features in (
        hear_m2d.get_scene_embeddings(audio, model),
        hear_m2d.get_timestamp_embeddings(audio, model)[0],
    ):
        assert not features.requires_grad
        head = torch.nn.Linear(features.shape[-1], 3)
        head(features).square().sum().backward()
        assert head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        timestamps = hear_m2d.get_timestamp_embeddings(audio, model)[1]
    timestamps[0, 0] = 3.0  # its own memory, not a view of one row
    assert len(timestamps) == 1 or timestamps[1, 0] != 3.0


def test_embedding_twice_gives_the_same_bits(model, noise):
    audio = noise(2, 16000)
    assert torch.equal(
        hear_m2d.get_scene_embeddings(audio, model), hear_m2d.get_scene_embeddings(audio, model)
    )


def test_a_loaded_model_is_in_eval_mode_on_the_cpu(checkpoint_path):
    model = hear_m2d.load_model(str(checkpoint_path))
    assert not any(module.training for module in model.modules())
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert {t.dtype for t in [*model.parameters(), *model.buffers()]} == {torch.float32}


def global_settings() -> dict[str, object]:
    importlib.import_module("timm.models.vision_transformer")  # what importing it sets is its own affair
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "torch seed": torch.get_rng_state().tolist(),
        "python seed": random.getstate(),
        "numpy seed": str(np.random.get_state()),
        "safe globals": set(torch.serialization.get_safe_globals()),
        "benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "warnings": list(warnings.filters),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"timestamps": "dense", "layers": [0]}])
def test_loading_and_embedding_change_no_global_setting(checkpoint_path, fixtures_dir, noise, options):
    (published,) = fixtures_dir.glob("*fxa_enconly/*.pth")
    audio = noise(1, 5000)
    before = global_settings()
    for path in (checkpoint_path, published):
        model = hear_m2d.load_model(path, **options)
        hear_m2d.get_scene_embeddings(audio, model)
        hear_m2d.get_timestamp_embeddings(audio, model)
        model(audio)
    assert global_settings() == before


def test_a_load_that_fails_changes_no_global_setting(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 damaged")
    before = global_settings()
    with pytest.raises(ValueError, match=r"x\.pth"):
        hear_m2d.load_model(tmp_path / "x.pth")
    assert global_settings() == before


def test_loading_does_not_follow_a_changed_default_dtype(checkpoint_path, noise):
    audio = noise(1, 5000)
    expected = hear_m2d.load_model(checkpoint_path).columns(audio)
    torch.set_default_dtype(torch.float64)
    try:
        model = hear_m2d.load_model(checkpoint_path)
        found = model.columns(audio)
        scenes, (embeddings, times) = model.scene_embeddings(audio), model.timestamp_embeddings(audio)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in [*model.parameters(), *model.buffers()]} == {torch.float32}
    assert {t.dtype for t in (found, scenes, embeddings, times)} == {torch.float32}
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"timestmps": "dense"}, r"option 'timestmps'\. Did you mean timestamps"),
        ({"layer": [0]}, "Did you mean layers"),
        ({"timestamps": "sparse"}, "one of interpolate, dense"),
        ({"layer_mode": "max"}, "one of concat, mean"),
        ({"dtype": "float16"}, "one of float32, bfloat16"),
        ({"layers": []}, "block indices"),
        ({"layers": ["0"]}, "block indices"),
        ({"layers": 3}, "block indices"),
        ({"layers": [True]}, "block indices"),
        ({"layers": [7]}, "there are 2 blocks"),
        ({"sample_rate": 0}, "sample_rate must be at least 1, got 0"),
        ({"sample_rate": 16000.0}, "sample_rate must be an integer"),
        ({"input_frames": 600}, "input_frames must be 64 to 79"),
        ({"std": 0}, r"std must be positive, got 0\.0"),
        ({"mean": float("nan")}, "mean must be a number that a log-mel can have, got nan"),
        ({"std": "4"}, "std must be a number"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(checkpoint_path, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        hear_m2d.load_model(checkpoint_path, **wrong)


def test_an_input_length_that_is_no_multiple_of_the_patch_can_be_given(checkpoint_path, noise):
    audio = noise(1, 30000)
    expected = hear_m2d.load_model(checkpoint_path).columns(audio)
    assert torch.equal(hear_m2d.load_model(checkpoint_path, input_frames=73).columns(audio), expected)


def test_importing_loads_neither_timm_nor_the_other_parts():
    code = "import hear_m2d, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    heavy = ("timm", "torchaudio", "sklearn", "hear_m2d.pretrain", "hear_m2d.evaluation")
    assert "hear_m2d" in loaded
    assert [name for name in loaded if name in heavy] == []


def test_what_soundfile_read_returns_for_stereo_is_refused_and_not_taken_for_clips(checkpoint_path):
    model = hear_m2d.load_model(checkpoint_path)
    with pytest.raises(ValueError, match=r"\(44100, 2\) looks like \(samples, channels\)"):
        hear_m2d.get_scene_embeddings(torch.zeros(44100, 2), model)


def test_a_rate_given_by_hand_keeps_the_other_numbers_of_the_front_end():
    frontend = FrontendConfig(n_fft=512, hop_length=320, n_mels=64, f_min=20.0)
    encoder = EncoderConfig(input_size=(64, 64), width=64, depth=1, heads=1)
    config = ModelConfig(encoder=encoder, frontend=frontend)
    found = Options(sample_rate=32000).override(config).frontend
    assert (found.n_mels, found.f_min, found.hop_ms, found.n_fft) == (64, 20.0, frontend.hop_ms, 1024)
    for rate in (16000, 22050, 32000, 44100, 48000):
        assert FrontendConfig().at_rate(rate) == FrontendConfig.for_rate(rate)
