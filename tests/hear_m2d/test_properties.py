"""What holds for any audio: its number of clips, length, dtype, layout and device do not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hear_m2d

DTYPES = [torch.float16, torch.float32, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPTIONS = [
    {},
    {"timestamps": "dense"},
    {"layers": [0, -1]},
    {"layers": [1, 0], "layer_mode": "mean", "output": "mean"},
    {"output": "tokens", "timestamps": "dense"},
    {"windows": "published"},
    {"mean": -4.0, "std": 3.0, "output": "mean"},
]


@pytest.fixture(scope="module")
def models(make_model):
    """A narrow model for each of OPTIONS."""
    return [make_model(width=16, frames=48, options=options) for options in OPTIONS]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return request.param


def random_audio(batch, samples, seed, dtype=torch.float32):
    return (torch.rand(batch, samples, generator=torch.Generator().manual_seed(seed)) - 0.5).to(dtype)


def read_only(audio):
    """A tensor on memory that numpy may not write to."""
    array = audio.numpy().copy()
    array.flags.writeable = False
    return torch.from_numpy(array)


# Each turns (batch, samples) into the same numbers lying otherwise.
LAYOUTS = {
    "contiguous": lambda audio: audio,
    "strided": lambda audio: audio.repeat_interleave(2, dim=1)[:, ::2],
    "transposed": lambda audio: audio.T.contiguous().T,
    "part of more": lambda audio: torch.nn.functional.pad(audio, (3, 5, 1, 1))[1:-1, 3:-5],
    "expanded": lambda audio: audio[:1].expand(len(audio), -1),
    "read-only": read_only,
    "requires grad": lambda audio: audio.clone().requires_grad_(),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4), samples=st.integers(1, 12000), seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(list(LAYOUTS)),
    number=st.integers(0, len(OPTIONS) - 1),
)  # fmt: skip
def test_dtype_and_layout_of_the_audio_do_not_matter(
    models, device, batch, samples, seed, dtype, layout, number
):
    model = models[number].to(device)
    audio = random_audio(batch, samples, seed, dtype)
    if layout == "expanded":
        audio = audio[:1].repeat(batch, 1)
    plain = audio.float()
    given_audio = LAYOUTS[layout](audio).to(device)
    before = given_audio.detach().clone()
    scenes, embeddings, times = model.scene_and_timestamp_embeddings(given_audio)
    assert torch.equal(given_audio, before)  # audio is left as it was
    expected = model.scene_and_timestamp_embeddings(plain)
    for found, wanted in zip((scenes, embeddings, times), expected, strict=True):
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.device.type == device
        assert torch.allclose(found, wanted, atol=1e-5 if device == "cpu" else 1e-4)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16000), min_size=1, max_size=4), seed=st.integers(0, 99),
    number=st.integers(0, len(OPTIONS) - 1), batch_windows=st.sampled_from([None, 1, 2, 7]),
)  # fmt: skip
def test_a_clip_of_any_list_is_embedded_as_if_alone(models, device, lengths, seed, number, batch_windows):
    model = models[number].to(device)
    clips = [random_audio(1, n, seed + i)[0] for i, n in enumerate(lengths)]
    model.batch_windows = batch_windows
    try:
        scenes, embeddings, times = model.scene_and_timestamp_embeddings(clips)
        features = model.features(clips)
    finally:
        model.batch_windows = None
    for i, clip in enumerate(clips):
        alone = model.scene_and_timestamp_embeddings(clip[None])
        found = (scenes[i], embeddings[i], times[i], features[i])
        for one, other in zip(found, (*alone, model.features(clip[None])), strict=True):
            assert torch.allclose(one, other[0], atol=1e-5 if device == "cpu" else 1e-4)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), samples=st.integers(1, 20000),
    rate=st.sampled_from([16000, 22050, 32000, 44100]),
    patch=st.sampled_from([(16, 16), (16, 8), (16, 4), (80, 2), (80, 4), (20, 5)]),
    frames=st.integers(16, 60), option=st.sampled_from(["interpolate", "dense"]),
)  # fmt: skip
def test_any_audio_gives_finite_embeddings_of_the_promised_sizes(
    make_model, batch, samples, rate, patch, frames, option
):
    model = make_model(
        patch=patch, rate=rate, frames=frames, width=16, depth=1, options={"timestamps": option}
    )
    audio = random_audio(batch, samples, samples)
    scenes = hear_m2d.get_scene_embeddings(audio, model)
    embeddings, times = hear_m2d.get_timestamp_embeddings(audio, model)
    assert scenes.shape == (batch, model.scene_embedding_size)
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert times.shape[0] == batch
    assert model.columns(audio).shape[1] == -(-model.config.frontend.frames(samples) // patch[1])
    assert all(x.isfinite().all() for x in (scenes, embeddings, times))
    assert (times.double().diff() > 0).all()
    assert (times.double().diff() <= 50.01).all()


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0, 1), offset=st.floats(-1, 1), samples=st.integers(1, 9000), seed=st.integers(0, 99))
def test_quiet_loud_and_constant_audio_is_finite(models, scale, offset, samples, seed):
    audio = scale * random_audio(2, samples, seed) + offset
    for model in models:
        assert np.isfinite(hear_m2d.get_scene_embeddings(audio, model).numpy()).all()
