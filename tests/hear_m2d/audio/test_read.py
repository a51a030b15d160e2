"""Decoding: the right samples, or one sentence that names the file."""

import os
import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import AudioError, find_audio, read_audio, read_sound

# libsndfile alone cannot always tell damage from a format that it does not support.
DAMAGED = "truncated|corrupt" if find_spec("av") else "truncated|corrupt|not supported"


def tone(rate, seconds=1.0, hz=440.0, channels=1):
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hz * time)
    return wave.astype(np.float32) if channels == 1 else np.stack([wave] * channels, 1).astype(np.float32)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "mp3"])
def test_any_format_rate_and_number_of_channels_gives_the_same_tone(tmp_path, suffix, rate, channels):
    if suffix == "mp3" and channels > 2:
        pytest.skip("MP3 has at most two channels")
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    audio = read_audio(path, 16000)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert abs(len(audio) - 16000) <= 2
    spectrum = np.abs(np.fft.rfft(audio[:16000] * np.hanning(len(audio[:16000]))))
    assert np.argmax(spectrum) == 440
    assert np.abs(audio[4000:12000]).max() == pytest.approx(0.5, abs=0.1)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], 1)
    soundfile.write(tmp_path / "x.wav", stereo, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav", 16000), 0.125)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_average_is_numpys_to_the_bit(tmp_path, channels):
    wave = np.random.default_rng(0).standard_normal((5000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav", 16000), wave.mean(axis=1))


def test_a_file_longer_than_a_block_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("hear_m2d.audio.sndfile._BLOCK", 1000)
    wave = tone(16000)
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav", 16000), wave)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "caf", "flac", "mp3"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(44100), 44100)
    assert len(read_audio(path, 44100)) == 44100
    cut(path, 0.6)
    with pytest.raises(AudioError, match=rf"x\.{suffix} is ({DAMAGED}): "):
        read_audio(path, 44100)


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path):
    """A program that writes to a pipe leaves 0xFFFFFFFF as the length."""
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(16000), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_audio(path, 16000)) == 16000


def test_an_mp3_that_states_no_length_is_not_called_truncated(tmp_path):
    path = tmp_path / "x.mp3"
    noise = 0.1 * np.random.default_rng(0).standard_normal(44100)
    soundfile.write(path, np.concatenate([np.zeros(88200), noise]), 44100)  # a varying bit rate, low at first
    data = path.read_bytes()
    assert b"Xing" in data[:200] or b"Info" in data[:200]
    path.write_bytes(data[data.index(data[:2], 100) :])  # without the frame that states the length
    assert soundfile.info(path).frames > 1.2 * 132_300, "a guess from the first frames' bit rate"
    assert len(read_audio(path, 44100)) > 100_000


@pytest.mark.parametrize(
    "content", [b"", b"no sound at all" * 100, b"RIFF\x24\x00\x00\x00WAVE", b"ID3\x04", b"OggS"]
)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "ogg", "flac"])
def test_what_is_no_audio_is_named_with_its_reason(tmp_path, content, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"x\.{suffix} is ({DAMAGED}|empty): .+"):
        read_audio(path, 16000)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_a_file_without_bytes_is_empty(tmp_path, suffix):
    (tmp_path / f"x.{suffix}").touch()
    with pytest.raises(AudioError, match=rf"x\.{suffix} is empty: it holds no bytes") as caught:
        read_audio(tmp_path / f"x.{suffix}", 16000)
    assert caught.value.reason == "empty"


def test_a_file_without_samples_is_empty(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"x\.wav is empty"):
        read_audio(tmp_path / "x.wav", 16000)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, bad):
    wave = tone(16000)
    wave[100] = bad
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite") as caught:
        read_audio(tmp_path / "x.wav", 8000)
    assert caught.value.reason == "non-finite"


def test_samples_that_overflow_in_resampling_are_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.tile([3e38, -3e38], 4000), 44100, subtype="FLOAT")
    assert np.isfinite(read_audio(tmp_path / "x.wav", 44100)).all()
    with pytest.raises(AudioError, match="too loud") as caught:
        read_audio(tmp_path / "x.wav", 48000)
    assert caught.value.reason == "non-finite"


def test_a_file_that_is_shorter_than_one_sample_of_the_rate_wanted_is_empty(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(1, 0.5), 1_000_000)
    with pytest.raises(AudioError, match=r"its 1 samples at 1000000 hertz give none at 1000"):
        read_audio(tmp_path / "x.wav", 1000)


@pytest.mark.parametrize("rate", [1, 99, 10_000_001, 2_000_000_000])
def test_a_header_with_an_absurd_rate_is_refused_before_anything_is_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", np.zeros(100_000), rate)
    with pytest.raises(AudioError, match=rf"x\.wav is corrupt: its header states a rate of {rate} hertz"):
        read_audio(tmp_path / "x.wav", 16000)


def test_sound_is_described_beside_its_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(8000, channels=6), 8000)
    sound = read_sound(tmp_path / "x.wav", 16000)
    assert (sound.file_rate, sound.channels, len(sound.samples)) == (8000, 6, 16000)


@pytest.mark.parametrize("kind", ["AVR", "MPC2K", "NIST", "RF64", "VOC", "W64", "WVE"])
def test_a_length_that_only_the_header_of_a_rare_format_states_is_held_against_the_sound(tmp_path, kind):
    path = tmp_path / f"x.{kind.lower()}"
    rate, subtype = (8000, "ALAW") if kind == "WVE" else (16000, "PCM_16")
    soundfile.write(path, tone(rate), rate, format=kind, subtype=subtype)
    assert len(read_audio(path, rate)) == rate
    cut(path, 0.6)
    with pytest.raises(AudioError, match=rf"x\.{kind.lower()} is truncated: "):
        read_audio(path, rate)


def test_an_mp3_cut_by_one_frame_is_truncated(tmp_path):
    """Its decoder's delay hides two frames; the number of bytes in its first frame does not."""
    path = tmp_path / "x.mp3"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(44100), 44100)
    data = path.read_bytes()
    path.write_bytes(data[:-300])
    with pytest.raises(AudioError, match=r"x\.mp3 is truncated: its last frame has \d+ of \d+ bytes"):
        read_audio(path, 44100)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "caf", "flac", "mp3", "ogg", "w64"])
def test_bytes_in_memory_give_what_their_file_gives_whole_or_cut(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(44100, 2.0), 44100)
    content = path.read_bytes()
    np.testing.assert_array_equal(read_audio("inside", 16000, content=content), read_audio(path, 16000))
    cut(path, 0.5)
    told = []
    for given in (None, path.read_bytes()):
        try:
            told.append(read_audio(path, 16000, content=given).tolist())
        except AudioError as error:
            told.append(str(error))
    assert told[0] == told[1]
    assert isinstance(told[0], str) or suffix == "ogg"  # which states no length


def test_no_bytes_in_memory_are_empty():
    with pytest.raises(AudioError, match=r"^inside is empty"):
        read_audio("inside", 16000, content=b"")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_audio(tmp_path / "nowhere.wav", 16000)


def test_the_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(AudioError("x.wav", "empty", "it holds no samples")))
    assert (error.path, error.reason, str(error)) == ("x.wav", "empty", "x.wav is empty: it holds no samples")


def test_files_whose_names_are_not_utf8_are_read(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(16000), 16000)
    odd = os.fsencode(tmp_path) + b"/\xff.wav"
    try:
        (tmp_path / "x.wav").rename(os.fsdecode(odd))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(read_audio(find_audio(tmp_path)[0], 16000)) == 16000
