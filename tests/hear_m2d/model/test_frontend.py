"""The log-mel against the reference numbers, against torchaudio, and at its edges."""

import json
import math

import numpy as np
import pytest
import torch

from hear_m2d.model.frontend import LOG_EPS, FrontendConfig, LogMelSpectrogram, mel_filters

SILENCE = math.log(1.1920929e-07)


def assert_close_to_reference(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    distance = np.abs(found.numpy() - expected)
    assert distance.max() <= 5e-4
    assert np.mean(distance <= 5e-5) >= 0.999


@pytest.mark.parametrize("name", ["lms_16k", "lms_32k"])
def test_log_mel_and_filters_equal_the_published_front_end(fixtures_dir, name):
    expected = np.load(fixtures_dir / f"{name}.npz")
    settings = json.loads(str(expected["settings"]))
    frontend = LogMelSpectrogram(FrontendConfig.for_rate(settings["sample_rate"]))
    assert frontend.config.n_fft == settings["n_fft"]
    assert frontend.config.hop_length == settings["hop_length"]
    np.testing.assert_allclose(frontend.filters.numpy(), expected["mel_basis"], atol=2e-7)
    assert_close_to_reference(frontend(torch.from_numpy(expected["wav"])), expected["lms"])


@pytest.mark.parametrize(
    ("rate", "prefix", "clip"),
    [(16000, "lms", clip) for clip in ("chirp_noise", "impulse_train", "speechlike", "silence")]
    + [(32000, "lms32k", clip) for clip in ("chirp_noise", "impulse_train", "speechlike")],
)
def test_log_mel_of_hard_signals_equals_the_published_front_end(fixtures_dir, rate, prefix, clip):
    expected = np.load(fixtures_dir / "lms_3.npz")
    found = LogMelSpectrogram(FrontendConfig.for_rate(rate))(torch.from_numpy(expected[f"wav_{clip}"])[None])
    assert_close_to_reference(found[0], expected[f"{prefix}_{clip}"])


@pytest.mark.parametrize("rate", [16000, 32000])
def test_mel_power_equals_torchaudio_to_1e4_of_the_maximum(rate, noise):
    transforms = pytest.importorskip("torchaudio.transforms")
    config = FrontendConfig.for_rate(rate)
    reference = transforms.MelSpectrogram(
        rate, n_fft=config.n_fft, win_length=config.n_fft, hop_length=config.hop_length, f_min=config.f_min,
        f_max=config.f_max, n_mels=80, power=2.0, center=True, pad_mode="reflect", norm="slaney",
        mel_scale="slaney",
    )  # fmt: skip
    time = torch.arange(2 * rate) / rate
    audio = torch.stack(
        [noise(1, 2 * rate, scale=1.0)[0], 0.5 * torch.sin(2000 * time**2), 0.3 * noise(1, 2 * rate)[0]]
    )
    expected = reference(audio)
    found = LogMelSpectrogram(config)(audio).exp() - LOG_EPS
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.max()


def test_mel_power_equals_a_slow_float64_transform():
    config = FrontendConfig(sample_rate=800, n_fft=20, hop_length=8, n_mels=4, f_min=10.0, f_max=400.0)
    audio = np.random.default_rng(0).uniform(-1, 1, 53)
    padded = np.concatenate([audio[1:11][::-1], audio, audio[-11:-1][::-1]])
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 20) for n in range(20)]
    expected = np.zeros((4, 53 // 8 + 1))
    for frame in range(expected.shape[1]):
        for k in range(11):
            terms = [padded[frame * 8 + n] * window[n] * np.exp(-2j * np.pi * k * n / 20) for n in range(20)]
            expected[:, frame] += mel_filters(config).double().numpy()[:, k] * abs(sum(terms)) ** 2
    found = LogMelSpectrogram(config)(torch.from_numpy(audio)[None])[0].exp() - LOG_EPS
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rate", [16000, 32000])
def test_digital_silence_is_the_logarithm_of_epsilon(rate):
    logmel = LogMelSpectrogram(FrontendConfig.for_rate(rate))(torch.zeros(2, rate))
    assert torch.allclose(logmel, torch.tensor(SILENCE), atol=1e-5)


@pytest.mark.parametrize("rate", [16000, 32000])
@pytest.mark.parametrize("samples", [1, 2, 199, 200, 201, 202, 400, 401, 1600, 15999, 16000, 16001])
def test_frame_count_is_samples_over_hop_plus_one_and_known_beforehand(rate, samples, noise):
    config = FrontendConfig.for_rate(rate)
    found = LogMelSpectrogram(config)(noise(1, samples))
    assert found.shape == (1, 80, config.frames(samples))
    assert config.frames(samples) == max(samples, config.n_fft // 2 + 1) // config.hop_length + 1
    assert found.isfinite().all()


def test_audio_too_short_for_reflection_gets_zeros_appended_first(noise):
    frontend = LogMelSpectrogram()
    short = noise(2, 150)
    assert torch.equal(frontend(short), frontend(torch.nn.functional.pad(short, (0, 51))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_log_mel_is_float32_whatever_comes_in(dtype, noise):
    audio = noise(1, 1600).to(dtype)
    found = LogMelSpectrogram()(audio)
    assert found.dtype == torch.float32
    assert torch.equal(found, LogMelSpectrogram()(audio.float()))


def test_mixed_precision_does_not_reach_the_front_end(noise):
    audio = noise(1, 4000)
    frontend = LogMelSpectrogram()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = frontend(audio)
    assert torch.equal(mixed, frontend(audio))


def test_front_end_is_differentiable(noise):
    audio = noise(1, 800).requires_grad_()
    LogMelSpectrogram()(audio).sum().backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
    assert audio.grad.abs().sum() > 0


def test_front_end_stores_nothing_in_a_checkpoint():
    assert not LogMelSpectrogram().state_dict()


@pytest.mark.parametrize(
    "wrong", [{"n_fft": 0}, {"hop_length": -1}, {"f_min": 9000.0}, {"f_max": 8001.0}, {"f_min": -1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|ordered"):
        FrontendConfig(**wrong)
