import numpy as np
import pytest
import synth


@pytest.mark.parametrize("index", range(len(synth.KINDS)))
def test_a_clip_depends_on_seed_and_index_alone(index):
    first, kind = synth.clip(3, index, 1.0)
    np.random.default_rng(99).random(10)
    again, _ = synth.clip(3, index, 1.0)
    assert kind == synth.KINDS[index]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, synth.clip(4, index, 1.0)[0])
    assert not np.array_equal(first, synth.clip(3, index + len(synth.KINDS), 1.0)[0])


@pytest.mark.parametrize("index", range(16))
def test_a_clip_has_its_length_and_neither_clips_nor_is_silent(index):
    sound, _ = synth.clip(0, index, 2.0)
    assert sound.shape == (2 * synth.SAMPLE_RATE,)
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() <= 0.95
    assert np.sqrt(np.mean(sound**2)) > 1e-4


@pytest.mark.parametrize("timbre", sorted(synth.TIMBRES))
def test_a_note_has_its_pitch(timbre):
    sound = synth.note(synth.generator(0), 440.0, 1.0, timbre)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    fundamental = spectrum[430:451].max()
    assert spectrum[435:446].max() == fundamental
    assert fundamental > 0.1 * spectrum.max()
    assert spectrum[100:400].max() < 0.5 * fundamental


def test_level_sets_the_loudest_tenth_of_a_second():
    sound = np.zeros(16_000)
    sound[4000:8000] = np.sin(np.arange(4000) * 0.3)
    loud = synth.level(sound, -20.0)[4800:6400]
    assert 20 * np.log10(np.sqrt(np.mean(loud**2))) == pytest.approx(-20, abs=0.5)
