"""The adapter keeps X-ARES's contract; `make test-adapters` runs the real X-ARES."""

import dataclasses
import io

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.evaluation.adapters.xares import XaresEncoder, decode_with_soundfile


@pytest.fixture
def model(make_model):
    return make_model(width=32)


@pytest.mark.parametrize(("patch", "column_ms", "timestamp_ms"), [((16, 16), 160, 40), ((80, 2), 20, 20)])
def test_times_are_as_far_apart_as_the_encoder_says(make_model, noise, patch, column_ms, timestamp_ms):
    model = make_model(width=32, patch=patch, frames=64)
    audio = noise(2, 50000)
    for frames, hop in (("columns", column_ms), ("timestamps", timestamp_ms)):
        encoder = XaresEncoder(model, frames)
        found = encoder(audio)
        assert encoder.sampling_rate == 16000
        assert encoder.hop_size_in_ms == hop
        assert encoder.output_dim == found.shape[2]
        assert abs(found.shape[1] - 3125 / hop) <= 1
        torch.testing.assert_close(encoder(audio[0])[0], found[0], atol=1e-5, rtol=0)


def test_columns_average_to_the_scene_embedding(model, noise):
    audio = noise(2, 30000)
    torch.testing.assert_close(XaresEncoder(model)(audio).mean(1), model.scene_embeddings(audio))


def test_output_follows_the_options(make_model, noise):
    model = make_model(width=32, options={"output": "mean", "layers": [0, 1]})
    encoder = XaresEncoder(model)
    assert encoder(noise(1, 20000)).shape[2] == encoder.output_dim == 64


def test_the_name_of_the_class_ends_as_the_checker_requires():
    assert XaresEncoder.__name__.endswith("Encoder")


def test_options_that_make_no_sense_are_refused(model):
    with pytest.raises(ValueError, match="must be columns or timestamps"):
        XaresEncoder(model, "frames")
    model.options = dataclasses.replace(model.options, output="tokens")
    with pytest.raises(ValueError, match="no frames in time"):
        XaresEncoder(model)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_webdataset_audio_is_decoded_channels_first(suffix):
    tone = 0.5 * np.sin(0.1 * np.arange(4000, dtype=np.float32))
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone, -tone], axis=1), 22050, format=suffix.upper())
    audio, rate = decode_with_soundfile(f"clip.{suffix.upper()}", file.getvalue())
    assert rate == 22050
    assert audio.dtype == torch.float32
    assert audio.shape == (2, 4000)
    assert (audio[0] - torch.from_numpy(tone)).abs().max() < 0.1


def test_other_files_of_a_webdataset_are_left_to_other_decoders():
    assert decode_with_soundfile("clip.json", b"{}") is None
