"""Hugging Face encoders behind the HEAR API, from tiny random models saved to a folder."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from hear_m2d.evaluation.adapters import transformers as adapter
from hear_m2d.utils.errors import InputError

transformers = pytest.importorskip("transformers")

RATE = 16000
WIDTH = 32
SPEECH = {
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 16,
}
KINDS = ("wav2vec2", "wav2vec2-layer", "hubert", "wavlm", "ast", "whisper")


def build(kind, layers=2, position_kernel=16):
    """A tiny random model of a kind and its feature extractor; AST and Whisper take 2.04 and 2 seconds."""
    speech = SPEECH | {"num_hidden_layers": layers, "num_conv_pos_embeddings": position_kernel}
    torch.manual_seed(0)
    if kind == "ast":
        config = transformers.ASTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=48,
            max_length=204,
            num_mel_bins=36,
        )
        extractor = transformers.ASTFeatureExtractor(max_length=204, num_mel_bins=36)
        return transformers.ASTModel(config), extractor
    if kind == "whisper":
        config = transformers.WhisperConfig(
            d_model=WIDTH,
            encoder_layers=layers,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=48,
            max_source_positions=100,
            vocab_size=40,
            pad_token_id=0,
        )
        return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(chunk_length=2)
    names = {"hubert": "Hubert", "wavlm": "WavLM"}
    name = names.get(kind, "Wav2Vec2")
    norm = "layer" if kind == "wav2vec2-layer" else "group"
    config = getattr(transformers, f"{name}Config")(**speech, feat_extract_norm=norm)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=kind != "wavlm")
    return getattr(transformers, f"{name}Model")(config), extractor


def save(folder, kind, **sizes):
    for part in build(kind, **sizes):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every kind, saved and loaded."""
    place = tmp_path_factory.mktemp("models")
    return {kind: adapter.load_model(save(place / kind, kind)) for kind in KINDS}


def noise(clips, samples, seed=0):
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed)) / 10


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(models, kind):
    loud = torch.cat([noise(1, 20000), 5 * noise(3, 20000, seed=1)])
    together = adapter.get_scene_embeddings(loud, models[kind])
    alone = adapter.get_scene_embeddings(loud[:1], models[kind])
    assert together.shape == (4, models[kind].scene_embedding_size) == (4, WIDTH)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 399, 400, 1399, 16000, 32000, 70000, 1_000_000])
@torch.no_grad()
def test_any_length_has_frames_at_even_steps_up_to_its_end(models, kind, samples):
    model = models[kind]
    frames, times = adapter.get_timestamp_embeddings(noise(1, samples), model)
    step = 100.0 if kind == "ast" else 20.0
    assert frames.shape == (1, times.shape[1], WIDTH)
    assert times.dtype == frames.dtype == torch.float32
    assert frames.isfinite().all()
    torch.testing.assert_close(times[0].diff(), torch.full_like(times[0, 1:], step), atol=0.01, rtol=0)
    length = 1000 * samples / RATE
    assert times[0, -1] <= length or times.shape[1] == 1
    assert times[0, -1] > length - step - 12.5 or times.shape[1] == 1
    scene = adapter.get_scene_embeddings(noise(1, samples), model)
    torch.testing.assert_close(scene, frames.mean(1))


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "ast", "whisper"])
@torch.no_grad()
def test_timestamps_are_the_centers_of_what_frames_read(tmp_path, kind):
    """Clicks at many places, in a network without attention: a frame changes where it reads the click."""
    model = adapter.load_model(save(tmp_path, kind, layers=0, position_kernel=1))
    if kind == "wav2vec2-layer":
        model.extractor.do_normalize = False  # statistics of the clip would carry the click everywhere
    audio = noise(1, 16000)
    plain, times = adapter.get_timestamp_embeddings(audio, model)
    frame = 3
    places = torch.arange(0, 16000, 8)
    clicked = audio.repeat(len(places), 1)
    clicked[torch.arange(len(places)), places] += 0.5
    changed = (model.frames(clicked)[:, frame] - plain[0, frame]).abs().amax(1) > 1e-6
    first, last = places[changed][0], places[changed][-1]
    assert abs((first + last) / 2 / RATE * 1000 - times[0, frame]) < 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_click_changes_most_the_frame_nearest_to_it(models, kind):
    audio = noise(1, 40000)
    plain, times = adapter.get_timestamp_embeddings(audio, models[kind])
    step = times[0, 1] - times[0, 0]
    offsets = []
    for place in range(4000, 36000, 1111):
        clicked = audio.clone()
        clicked[0, place : place + 16] += 0.5
        change = (models[kind].frames(clicked) - plain).norm(dim=2)[0]
        offsets.append(times[0, change.argmax()] - 1000 * (place + 8) / RATE)
    assert torch.tensor(offsets).abs().max() < step
    assert abs(torch.tensor(offsets).mean()) < step / 3


@torch.no_grad()
def test_whisper_scene_leaves_out_the_silence_that_fills_the_window(models):
    model = models["whisper"]
    audio = noise(1, 8000)
    output = model.network(model._features(audio)).last_hidden_state
    assert output.shape[1] == 100
    torch.testing.assert_close(adapter.get_scene_embeddings(audio, model), output[:, :25].mean(1))


@torch.no_grad()
def test_ast_scene_leaves_out_special_tokens_and_padding(models):
    model = models["ast"]
    audio = noise(1, 16000)
    output = model.network(model._features(audio)).last_hidden_state
    rows, columns = 3, 19
    assert output.shape[1] == 2 + rows * columns
    real = [t for t in range(columns) if 160 * (10 * t + 7.5) + 199.5 < 16000]
    kept = [output[:, 2 + row * columns + t] for row in range(rows) for t in real]
    wanted = torch.stack(kept).mean(0)
    torch.testing.assert_close(adapter.get_scene_embeddings(audio, model), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_wav2vec2_equals_transformers_on_one_clip(models):
    model = models["wav2vec2"]
    audio = noise(1, 16000)
    inputs = model.extractor([audio[0].numpy()], sampling_rate=RATE, return_tensors="pt")
    wanted = model.network(**inputs).last_hidden_state
    torch.testing.assert_close(model.frames(audio), wanted)
    assert wanted.shape[1] == math.floor((16000 - 400) / 320) + 1


@torch.no_grad()
def test_windows_join_without_a_gap(models):
    """A frame away from the seam is that of the window's own audio."""
    model = models["whisper"]
    audio = noise(1, 64000)  # two windows of 100 frames
    frames = model.frames(audio)
    torch.testing.assert_close(frames[:, 100:], model.frames(audio[:, 32000:]))


@pytest.mark.parametrize("shape", [(16000,), (1, 1, 16000), (1, 0), (0, 16000)])
def test_audio_of_another_shape_is_refused(models, shape):
    with pytest.raises(InputError, match="audio must be"):
        models["ast"].frames(torch.zeros(shape))


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path, "ast")
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layernorm" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, such as .*layernorm"):
        adapter.load_model(folder)


def test_another_kind_of_model_is_refused_and_the_supported_ones_are_named(tmp_path):
    folder = save(tmp_path, "wav2vec2")
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="type 'bert' are not supported; supported are wav2vec2, hubert"):
        adapter.load_model(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a model of transformers"):
        adapter.load_model(str(tmp_path))


def test_no_model_is_refused():
    with pytest.raises(InputError, match="--model must be a folder or a name"):
        adapter.load_model()


def test_a_name_becomes_the_folder_in_the_hub_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    save(snapshot, "wav2vec2")
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert adapter.resolve_model("someone/tiny") == snapshot
    assert adapter.load_model("someone/tiny").sample_rate == RATE
    with pytest.raises(InputError, match="someone/else is not a folder, and not a model on"):
        adapter.resolve_model("someone/else")


def test_an_unsupported_configuration_names_its_type():
    with pytest.raises(InputError, match="'clap'"):
        adapter.frame_grid(SimpleNamespace(model_type="clap"), SimpleNamespace(sampling_rate=RATE))
