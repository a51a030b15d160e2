"""The adapter keeps mteb's contract; `make test-adapters` runs the real mteb."""

import subprocess
import sys

import numpy as np
import pytest
import soxr
import torch

from hear_m2d.evaluation.adapters.mteb import MtebEncoder, mono


@pytest.fixture
def model(make_model):
    return make_model(width=32)


def batch(*clips, rate=16000):
    """What mteb's DataLoader gives."""
    return {"audio": [{"array": np.asarray(clip), "sampling_rate": rate} for clip in clips]}


def test_importing_the_adapters_imports_neither_package():
    script = (
        "import sys, hear_m2d.evaluation.adapters.mteb, hear_m2d.evaluation.adapters.xares; "
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


def test_no_clips_give_mteb_an_empty_array(model):
    assert MtebEncoder(model).encode([]).shape == (0, model.scene_embedding_size)


def test_a_batch_without_audio_is_refused(model):
    with pytest.raises(ValueError, match="only audio can be embedded; this batch holds text"):
        MtebEncoder(model).encode([{"text": ["a dog"]}])


def test_mteb_name_without_organization_is_refused(model):
    with pytest.raises(ValueError, match="organization/model"):
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
    assert MtebEncoder(model.bfloat16()).revision != revision


@pytest.mark.parametrize(
    ("array", "rate", "words"),
    [
        (np.zeros(100, dtype=np.int16), 16000, "floating point"),
        (np.zeros((100, 2)), 16000, "looks transposed"),
        (np.zeros((1, 2, 100)), 16000, "got the shape"),
        (np.zeros(0), 16000, "got the shape"),
        (np.zeros(100), None, "hertz, got None"),
        (np.zeros(100), 0, "hertz, got 0"),
    ],
)
def test_audio_that_would_be_misread_is_refused(array, rate, words):
    with pytest.raises(ValueError, match=words):
        mono(array, rate=rate, sample_rate=16000)


def test_a_clip_of_less_than_a_sample_is_silence():
    assert mono(np.ones(1), rate=192000, sample_rate=16000).shape == (1,)


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("shape", [(22050,), (2, 22050)])
def test_float16_audio_is_taken_at_any_rate(rate, shape):
    """Resampling refused float16."""
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float16)
    wanted = mono(audio.astype(np.float32), rate=rate, sample_rate=16000)
    torch.testing.assert_close(mono(audio, rate=rate, sample_rate=16000), wanted)
