"""HearModel: windows, batches, layers, precision, and audio that cannot be embedded."""

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.hear_model import check_audio

LENGTHS = [1, 200, 400, 2559, 2560, 10239, 10240, 10241, 50000]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def cosine(a, b) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@torch.no_grad()
def slow_columns(model, audio: torch.Tensor) -> np.ndarray:
    """Columns of one clip (samples,): window by window, token by token."""
    (rows, per_window), wide = model.config.encoder.grid, model.config.encoder.patch_size[1]
    x = ((model.frontend(audio[None]) - model.config.mean) / model.config.std)[0]
    columns = []
    for start in range(0, x.shape[1], per_window * wide):
        window = x[:, start : start + per_window * wide]
        while window.shape[1] % wide:
            window = torch.cat([window, torch.zeros(len(window), 1)], dim=1)
        tokens = model.encoder(window[None, None])[0]
        count = window.shape[1] // wide
        for column in range(count):
            columns.append(np.concatenate([tokens[row * count + column].numpy() for row in range(rows)]))
    return np.stack(columns)


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize(("patch", "frames"), [((16, 16), 64), ((16, 16), 73), ((80, 4), 50)])
def test_columns_equal_windows_done_one_by_one_by_hand(make_model, noise, samples, patch, frames):
    model = make_model(patch=patch, frames=frames)
    audio = noise(2, samples)
    found = model.columns(audio)
    for clip in range(2):
        np.testing.assert_allclose(found[clip].numpy(), slow_columns(model, audio[clip]), atol=1e-5)


@pytest.mark.parametrize("samples", LENGTHS)
def test_no_frame_is_lost_whatever_the_length(model, noise, samples):
    frames = model.config.frontend.frames(samples)
    assert model.columns(noise(1, samples)).shape == (1, -(-frames // 16), 320)


@pytest.mark.parametrize("batch_windows", [1, 3, 1000])
def test_windows_batched_together_equal_windows_one_by_one(make_model, noise, batch_windows):
    model = make_model()
    audio = noise(3, 70000)
    expected = model.columns(audio)
    model.batch_windows = batch_windows
    assert torch.allclose(model.columns(audio), expected, atol=1e-5)


@pytest.mark.parametrize("timestamps", ["interpolate", "dense"])
@pytest.mark.parametrize("samples", [150, 3000, 24000])
def test_embedding_does_not_depend_on_batch_mates(make_model, noise, samples, timestamps):
    model = make_model(options={"timestamps": timestamps})
    clip = noise(1, samples)
    mates = [
        torch.zeros(1, samples),
        noise(1, samples, scale=1.0, seed=1),
        torch.ones(1, samples),
        1e-4 * clip,
    ]
    alone = hear_m2d.get_scene_embeddings(clip, model)
    alone_in_time, _ = hear_m2d.get_timestamp_embeddings(clip, model)
    for place in range(5):
        batch = torch.cat([*mates[:place], clip, *mates[place:]])
        assert (hear_m2d.get_scene_embeddings(batch, model)[place] - alone[0]).abs().max() <= 1e-5
        found, _ = hear_m2d.get_timestamp_embeddings(batch, model)
        assert (found[place] - alone_in_time[0]).abs().max() <= 1e-5


def test_a_silent_batch_is_finite(model):
    assert hear_m2d.get_scene_embeddings(torch.zeros(2, 16000), model).isfinite().all()


def test_scene_is_the_mean_over_columns(model, noise):
    audio = noise(2, 30000)
    assert torch.allclose(
        hear_m2d.get_scene_embeddings(audio, model), model.columns(audio).mean(1), atol=1e-6
    )


@pytest.mark.parametrize("batch_windows", [0, -1])
def test_a_number_of_windows_below_one_is_refused(make_model, noise, batch_windows):
    """-1 was taken, and gave scenes of NaN."""
    model = make_model()
    model.batch_windows = batch_windows
    with pytest.raises(ValueError, match=f"batch_windows must be at least 1, got {batch_windows}"):
        model.scene_embeddings(noise(1, 9000))


def test_a_list_of_clips_gives_what_each_gives_alone_in_its_order(model, noise):
    clips = [noise(1, n, seed=n)[0] for n in (20000, 150, 9000, 20000, 1, 9000)]
    found = hear_m2d.get_scene_embeddings(clips, model)
    for clip, scene in zip(clips, found, strict=True):
        assert torch.allclose(hear_m2d.get_scene_embeddings(clip[None], model)[0], scene, atol=1e-5)


@pytest.mark.parametrize("timestamps", ["interpolate", "dense"])
def test_in_time_a_list_of_clips_gives_what_each_gives_alone(make_model, noise, timestamps):
    model = make_model(options={"timestamps": timestamps})
    clips = [noise(1, n, seed=n)[0] for n in (20000, 150, 33000, 20000, 1, 9000)]
    embeddings, times = hear_m2d.get_timestamp_embeddings(clips, model)
    columns = model.columns(clips)
    for i, clip in enumerate(clips):
        alone, alone_times = hear_m2d.get_timestamp_embeddings(clip[None], model)
        assert torch.allclose(embeddings[i], alone[0], atol=1e-5)
        assert torch.equal(times[i], alone_times[0])
        assert torch.allclose(columns[i], model.columns(clip[None])[0], atol=1e-5)


@pytest.mark.parametrize("timestamps", ["interpolate", "dense"])
def test_scenes_and_timestamps_at_once_equal_the_two_calls(make_model, noise, timestamps):
    model = make_model(options={"timestamps": timestamps})
    audio = noise(2, 30000)
    scenes, embeddings, times = model.scene_and_timestamp_embeddings(audio)
    assert torch.allclose(scenes, model.scene_embeddings(audio), atol=1e-6)
    expected, expected_times = model.timestamp_embeddings(audio)
    assert torch.allclose(embeddings, expected, atol=1e-6)
    assert torch.equal(times, expected_times)


def test_every_chosen_layer_is_concatenated_or_averaged_and_the_sizes_say_so(make_model, noise):
    audio = noise(2, 15000)
    single = [make_model(depth=3, options={"layers": [i]}).scene_embeddings(audio) for i in range(3)]
    for layers in ([0, 2], [-1], (2, 0, 0), [-3, 1]):
        joined = make_model(depth=3, options={"layers": layers})
        found = joined.scene_embeddings(audio)
        assert found.shape[1] == joined.scene_embedding_size == joined.timestamp_embedding_size
        assert joined.timestamp_embeddings(audio)[0].shape[2] == joined.timestamp_embedding_size
        assert torch.allclose(found, torch.cat([single[i] for i in layers], dim=1), atol=1e-6)
        mean = make_model(depth=3, options={"layers": layers, "layer_mode": "mean"})
        assert mean.scene_embedding_size == 320
        expected = torch.stack([single[i] for i in layers]).mean(0)
        assert torch.allclose(mean.scene_embeddings(audio), expected, atol=1e-6)


def test_columns_are_those_of_the_last_block_whatever_the_options(make_model, noise):
    audio = noise(1, 15000)
    options = {"layers": [0], "timestamps": "dense"}
    assert torch.equal(make_model(options=options).columns(audio), make_model().columns(audio))


def test_a_layer_that_is_not_there_is_refused(make_model):
    with pytest.raises(ValueError, match="there are 2 blocks"):
        make_model(options={"layers": [2]})


def test_bfloat16_embeds_alike_and_returns_float32(make_model, noise, tmp_path):
    model = make_model(width=192, heads=3, depth=4)
    save_checkpoint(tmp_path / "m.safetensors", model)
    half = hear_m2d.load_model(tmp_path / "m.safetensors", dtype="bfloat16")
    assert half.encoder.norm.weight.dtype == torch.bfloat16
    audio = noise(2, 30000)
    for function in (lambda m: m.scene_embeddings(audio), lambda m: m.timestamp_embeddings(audio)[0]):
        found = function(half)
        assert found.dtype == torch.float32
        assert cosine(found, function(model)) >= 0.999


def test_statistics_given_by_hand_override_the_files(make_model, noise):
    audio = noise(1, 9000)
    by_hand = make_model(options={"mean": -5.0, "std": 2.0})
    assert torch.equal(by_hand.columns(audio), make_model(mean=-5.0, std=2.0).columns(audio))
    assert not torch.equal(by_hand.columns(audio), make_model().columns(audio))


def test_model_is_differentiable_down_to_the_waveform(make_model, noise):
    model = make_model()
    audio = noise(1, 15000).requires_grad_()
    model(audio).square().mean().backward()
    assert audio.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.allclose(model(audio).detach(), model.columns(audio), atol=1e-6)


def test_gradient_equals_a_finite_difference(make_model, noise):
    model = make_model(width=16).double()
    window = noise(80, 32).double()[None, None].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: model._columns(model.encoder(x)).sum(), window, eps=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        (torch.zeros(100), "must be .batch, samples."), (torch.zeros(1, 1, 100), "must be .batch, samples."),
        (torch.tensor(1.0), "must be .batch, samples."),
        (torch.zeros(1, 100, dtype=torch.int16), "floating point"),
        (torch.zeros(1, 100, dtype=torch.bool), "floating point"),
        (torch.zeros(1, 99, dtype=torch.cfloat), "floating"),
        (torch.zeros(0, 100), "no audio"), (torch.zeros(2, 0), "no audio"), ([], "no audio"),
        (torch.tensor([[0.0, float("nan")]]), "NaN or infinite"),
        (torch.tensor([[0.0, float("-inf")]]), "NaN or infinite"),
        (torch.tensor([[0.0, 1e300]], dtype=torch.float64), "NaN or infinite"),
        ([torch.zeros(1, 5)], "one-dimensional"),
        ([torch.zeros(5), None], "one-dimensional"), ([torch.zeros(0)], "no audio"),
        ([torch.zeros(5, dtype=torch.int32)], "floating point"), ([torch.tensor(1.0)], "one-dimensional"),
        (np.zeros((1, 100), np.float32), "torch tensor"), ("clip.wav", "torch tensor"),
        (None, "torch tensor"),
    ],
)  # fmt: skip
def test_audio_that_cannot_be_embedded_is_refused_in_a_sentence(model, audio, sentence):
    for function in (
        check_audio, model.columns, model, model.scene_embeddings, model.timestamp_embeddings,
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=sentence):
            function(audio)


def test_a_checkpoint_without_classes_says_that_it_only_embeds(model):
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(torch.zeros(1, 1000))


@pytest.mark.parametrize("head_width", [64, 320])
@torch.no_grad()
def test_logits_read_the_mean_over_tokens_or_columns(make_model, noise, head_width):
    model = make_model(labels=("a", "b", "c"), head_width=head_width)
    model.head.norm.running_mean.normal_()
    model.head.norm.running_var.uniform_(0.5, 2)
    audio = noise(2, 9000)
    columns = model.columns(audio).double()
    pooled = columns.mean(1) if head_width == 320 else columns.reshape(2, -1, 64).mean(1)
    norm, linear = model.head.norm, model.head.linear
    scaled = (pooled - norm.running_mean) / (norm.running_var.double() + 1e-5).sqrt()
    expected = scaled @ linear.weight.double().T + linear.bias
    assert torch.allclose(model.classify(audio).double(), expected, atol=1e-4)
