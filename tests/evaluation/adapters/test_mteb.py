"""The adapters keep their harness's contract; `make test-adapters` runs the real harnesses."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch

from hear_m2d.evaluation.adapters.mteb import (
    MtebEncoder,
    XaresEncoder,
    decode_with_soundfile,
    fingerprint,
    mono,
)


@pytest.fixture
def model(make_model):
    return make_model(width=32)


def batch(*clips, rate=16000):
    """What mteb's DataLoader gives."""
    return {"audio": [{"array": np.asarray(clip), "sampling_rate": rate} for clip in clips]}


def test_importing_the_adapters_imports_neither_package():
    script = (
        "import sys, hear_m2d.evaluation.adapters.mteb; "
        "sys.exit(bool({'mteb', 'xares', 'webdataset'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_mteb_gets_the_scene_embedding_of_each_clip_at_its_own_length(model, noise):
    clips = [noise(1, samples, seed=samples)[0] for samples in (5000, 20000, 5000, 1)]
    found = MtebEncoder(model).encode([batch(*clips[:3]), batch(clips[3])], task_metadata=None, batch_size=3)
    assert found.shape == (4, model.scene_embedding_size)
    assert found.dtype == np.float32
    wanted = torch.cat([model.scene_embeddings(clip[None]) for clip in clips])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_mteb_audio_is_resampled_and_averaged_over_channels(model, noise):
    stereo = noise(2, 22050).numpy()
    found = MtebEncoder(model).encode([batch(stereo, rate=22050)])
    wanted = torch.from_numpy(soxr.resample(stereo.mean(0), 22050, 16000))
    np.testing.assert_allclose(found, model.scene_embeddings(wanted[None]), atol=1e-5)


def test_mteb_gets_an_empty_array_for_no_clips(model):
    assert MtebEncoder(model).encode([]).shape == (0, model.scene_embedding_size)


def test_mteb_is_told_that_only_audio_can_be_embedded(model):
    with pytest.raises(ValueError, match="only audio can be embedded; this batch holds text"):
        MtebEncoder(model).encode([{"text": ["a dog"]}])


def test_mteb_name_without_organisation_is_refused(model):
    with pytest.raises(ValueError, match="organisation/model"):
        MtebEncoder(model, name="mine")


def test_similarity_is_the_cosine(model):
    encoder = MtebEncoder(model)
    a, b = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)[:2]
    table = encoder.similarity(a.numpy(), b)
    assert table.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(table[i, j], a[i] @ b[j] / a[i].norm())
    torch.testing.assert_close(encoder.similarity_pairwise(a[:2], b), table[[0, 1], [0, 1]])


def test_results_of_another_checkpoint_are_not_taken_for_this_ones(model, make_model):
    """mteb files results by name and revision, and reuses them."""
    revision = MtebEncoder(model).revision
    assert revision == MtebEncoder(make_model(width=32)).revision
    assert revision != MtebEncoder(make_model(width=32, seed=1)).revision
    assert revision != MtebEncoder(make_model(width=32, mean=-6.0)).revision
    assert revision != MtebEncoder(make_model(width=32, options={"output": "mean"})).revision
    assert MtebEncoder(model, revision="v1").revision == "v1"
    assert fingerprint(model.bfloat16()) != revision


@pytest.mark.parametrize(
    ("array", "rate", "words"),
    [
        (np.zeros(100, dtype=np.int16), 16000, "floating point"),
        (np.zeros((100, 2)), 16000, "looks transposed"),
        (np.zeros((1, 2, 100)), 16000, "its shape is"),
        (np.zeros(0), 16000, "its shape is"),
        (np.zeros(100), None, "sampling rate is None"),
        (np.zeros(100), 0, "sampling rate is 0"),
    ],
)
def test_audio_that_would_be_misread_is_refused(array, rate, words):
    with pytest.raises(ValueError, match=words):
        mono(array, rate=rate, sample_rate=16000)


def test_a_clip_of_less_than_a_sample_is_silence():
    assert mono(np.ones(1), rate=192000, sample_rate=16000).shape == (1,)


@pytest.mark.parametrize(("patch", "column_ms", "timestamp_ms"), [((16, 16), 160, 40), ((80, 2), 20, 20)])
def test_xares_gets_times_as_far_apart_as_it_is_told(make_model, noise, patch, column_ms, timestamp_ms):
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


def test_xares_columns_average_to_the_scene_embedding(model, noise):
    audio = noise(2, 30000)
    torch.testing.assert_close(XaresEncoder(model)(audio).mean(1), model.scene_embeddings(audio))


def test_xares_output_follows_the_options(make_model, noise):
    model = make_model(width=32, options={"output": "mean", "layers": [0, 1]})
    encoder = XaresEncoder(model)
    assert encoder(noise(1, 20000)).shape[2] == encoder.output_dim == 64


def test_xares_class_name_ends_as_its_checker_wants():
    assert XaresEncoder.__name__.endswith("Encoder")


def test_xares_options_that_make_no_sense_are_refused(model):
    with pytest.raises(ValueError, match="columns, timestamps"):
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
