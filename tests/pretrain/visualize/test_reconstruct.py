"""Sound from log-mel: how close its own log-mel comes, and what happens at the edges."""

import sys

import numpy as np
import pytest
import torch

from hear_m2d.model.frontend import LOG_EPS, FrontendConfig, LogMelSpectrogram
from hear_m2d.pretrain.visualize.reconstruct import invert_mel, sounds_of_log_mels, why_no_sound

pytest.importorskip("torchaudio", reason="Griffin-Lim is torchaudio's")


def sound(rate, seconds=1.5):
    """A gliding harmonic tone that swells and stops, over faint noise."""
    t = np.arange(int(rate * seconds)) / rate
    phase = 2 * np.pi * np.cumsum(180 + 120 * np.sin(2 * np.pi * 0.7 * t)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 9)) * np.clip(np.sin(2 * np.pi * 1.3 * t), 0, 1)
    noise = np.random.default_rng(0).standard_normal(len(t))
    return torch.from_numpy(0.1 * tone + 0.003 * noise).float()[None]


def distance(waves, logmel, frontend):
    return float((frontend(waves)[..., : logmel.shape[-1]] - logmel).abs().mean())


@pytest.mark.parametrize("rate", [16000, 32000])
def test_the_mel_bands_of_the_inverse_are_those_given(rate):
    frontend = LogMelSpectrogram(FrontendConfig.for_rate(rate))
    logmel = frontend(sound(rate))
    power = invert_mel(logmel.exp() - LOG_EPS, frontend.filters)
    assert power.min() >= 0
    again = torch.log(frontend.filters @ power + LOG_EPS)
    assert float((again - logmel).abs().mean()) < 0.01


@pytest.mark.parametrize("rate", [16000, 32000])
def test_the_log_mel_of_the_sound_is_close_to_the_one_it_was_made_from(rate):
    frontend = LogMelSpectrogram(FrontendConfig.for_rate(rate))
    logmel = frontend(sound(rate))
    waves = sounds_of_log_mels(logmel, frontend)
    assert waves.shape == (1, (logmel.shape[-1] - 1) * frontend.config.hop_length)
    assert distance(waves, logmel, frontend) < 0.2
    assert 0.7 < float(waves.std() / sound(rate).std()) < 1.4  # as loud


def test_a_phase_that_is_left_random_or_other_filters_would_be_noticed():
    frontend = LogMelSpectrogram()
    logmel = frontend(sound(16000))
    assert distance(sounds_of_log_mels(logmel, frontend, steps=1), logmel, frontend) > 0.3
    other = LogMelSpectrogram(FrontendConfig(f_min=0.0, f_max=7000.0))
    assert distance(sounds_of_log_mels(logmel, other), logmel, frontend) > 0.4


def test_silence_stays_silent_and_finite():
    frontend = LogMelSpectrogram()
    waves = sounds_of_log_mels(torch.full((2, 80, 20), float(np.log(LOG_EPS))), frontend)
    assert float(waves.abs().max()) < 1e-4


def test_the_shortest_clip_has_a_sound():
    frontend = LogMelSpectrogram()
    waves = sounds_of_log_mels(frontend(torch.ones(1, 1) * 0.1), frontend)
    assert waves.shape == (1, 201)
    assert waves.isfinite().all()


def test_the_same_log_mel_gives_the_same_sound_and_leaves_the_random_state_alone():
    frontend = LogMelSpectrogram()
    logmel = frontend(sound(16000, seconds=0.3))
    torch.manual_seed(5)
    first = sounds_of_log_mels(logmel, frontend, steps=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, sounds_of_log_mels(logmel, frontend, steps=3))


def test_without_torchaudio_a_sentence_has_the_line_to_type(monkeypatch):
    assert why_no_sound() == ""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert why_no_sound() == "torchaudio is not installed. Type: pip install torchaudio"
    with pytest.raises(ValueError, match="pip install torchaudio"):
        sounds_of_log_mels(torch.zeros(1, 80, 5), LogMelSpectrogram())
