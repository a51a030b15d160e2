"""Every patch × rate × kind of checkpoint, narrow and two blocks deep: what each must do."""

import argparse
import copy
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.hear_model import HearModel

PATCHES = [(16, 16), (16, 8), (16, 4), (80, 2), (80, 4)]
RATES = [16000, 32000]
OURS = {
    "m2d": {"kind": "m2d"},
    "msm-mae": {"kind": "msm_mae"},
    "no class token": {"class_token": False},
    "classifier": {"labels": ("a", "b", "c"), "head_width": 64},
}
FRAMES = 48  # of a window


def training_file(model):
    """What pretraining writes: the encoder beside decoder, target and the optimiser's state."""
    state = encoder_of(model)
    beside = {"mask_token": 64, "decoder_embed.weight": 64, "decoder_blocks.0.norm1.weight": 64}
    beside |= {"target_blocks.0.norm1.weight": 64, "decoder_norm.weight": 64, "decoder_pred.bias": 256}
    state |= {name: torch.randn(width) for name, width in beside.items()}
    return {"model": state, "optimizer": {"state": {}}, "epoch": 299, "args": argparse.Namespace(lr=1e-3)}


def encoder_only(model):
    return {**encoder_of(model), "norm_stats": torch.tensor([model.config.mean, model.config.std])}


def first_msm_mae(model):
    """The first code base has biases of q and v, and none of k."""
    state = encoder_of(model)
    for name in [name for name in state if name.endswith("qkv.bias")]:
        start = name.removesuffix("qkv.bias")
        state[f"{start}q_bias"], _, state[f"{start}v_bias"] = state.pop(name).chunk(3)
    return {"model": {**state, "mask_token": torch.randn(64)}}


def fine_tuned(model):
    """The encoder in a task network, behind its front end and before its classifier."""
    state = {f"module.ar.runtime.backbone.{name}": t for name, t in encoder_of(model).items()}
    state["module.ar.runtime.to_spec.stft.window"] = torch.ones(400)
    width = model.config.encoder.column_width
    state["module.head.norm.running_mean"] = torch.randn(width)
    state["module.head.norm.running_var"] = torch.rand(width) + 0.5
    state["module.head.norm.num_batches_tracked"] = torch.tensor(7)
    state["module.head.mlp.mlp.0.weight"] = torch.randn(3, width)
    state["module.head.mlp.mlp.0.bias"] = torch.randn(3)
    return state


PUBLISHED: dict[str, Callable] = {
    "published training file": training_file,
    "published encoder": encoder_only,
    "published first msm-mae": first_msm_mae,
    "published classifier": fine_tuned,
}


def encoder_of(model: HearModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}


@dataclass(frozen=True)
class Case:
    """A file, the network it was written from, and audio of two windows and a bit."""

    path: Path
    source: HearModel
    audio: torch.Tensor  # (3, samples)

    def load(self, **options) -> HearModel:
        return hear_m2d.load_model(self.path, **options)


@pytest.fixture(scope="module", params=[*OURS, *PUBLISHED])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=PATCHES, ids=lambda patch: "x".join(map(str, patch)))
def patch(request):
    return request.param


@pytest.fixture(scope="module", params=RATES)
def rate(request):
    return request.param


@pytest.fixture(scope="module")
def case(kind, patch, rate, make_model, noise, tmp_path_factory) -> Case:
    high, wide = patch
    name = f"m2d_vit_tiny-80x{FRAMES}p{high}x{wide}" + ("p32k" if rate == 32000 else "") + "-240101-x"
    folder = tmp_path_factory.mktemp(name)
    audio = noise(3, 110 * rate // 100)
    source = make_model(patch=patch, rate=rate, frames=FRAMES, heads=1, **OURS.get(kind, {}))
    if kind == "published first msm-mae":
        with torch.no_grad():
            for block in source.encoder.blocks:
                block.attn.qkv.bias[64:128] = 0
    if kind in OURS:
        path = folder / "checkpoint.safetensors"
        save_checkpoint(path, source)
    else:
        path = folder / name / "checkpoint-300.pth"
        path.parent.mkdir()
        torch.save(PUBLISHED[kind](source), path)
    return Case(path, source, audio)


def test_a_file_gives_what_the_network_it_was_written_from_gives(case, rate, patch):
    model = case.load()
    assert model.sample_rate == rate
    assert model.config.encoder == case.source.config.encoder
    assert torch.equal(model.columns(case.audio), case.source.columns(case.audio))


def test_forward_gives_scenes_and_timestamps_of_the_promised_shapes(case, patch):
    model = case.load()
    scenes, embeddings, times = model.scene_and_timestamp_embeddings(case.audio)
    columns = model.columns(case.audio)
    assert columns.shape == (3, -(-111 // patch[1]), 80 // patch[0] * 64)
    assert scenes.shape == (3, model.scene_embedding_size)
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in (scenes, embeddings, times, columns))
    assert not torch.allclose(scenes[0], scenes[1], atol=1e-3)
    if model.labels:
        assert model.classify(case.audio).shape == (3, 3)


def test_backward_reaches_every_weight(case):
    model = case.load()
    outputs = [model(case.audio), *([model.classify(case.audio)] if model.labels else [])]
    sum(x.square().mean() for x in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_saving_and_loading_changes_nothing(case, tmp_path):
    model = case.load()
    save_checkpoint(tmp_path / "one.safetensors", model)
    again = hear_m2d.load_model(tmp_path / "one.safetensors")
    assert again.config == model.config
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(again.columns(case.audio), model.columns(case.audio))
    save_checkpoint(tmp_path / "two.safetensors", again)
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_a_batch_a_list_and_single_clips_give_the_same(case):
    model = case.load()
    together = [*model.scene_and_timestamp_embeddings(case.audio), model.columns(case.audio)]
    clips = list(case.audio)
    as_list = [*model.scene_and_timestamp_embeddings(clips), model.columns(clips)]
    for i in range(3):
        clip = case.audio[i : i + 1]
        alone = [*model.scene_and_timestamp_embeddings(clip), model.columns(clip)]
        for of_batch, of_list, of_one in zip(together, as_list, alone, strict=True):
            assert torch.allclose(of_batch[i], of_one[0], atol=1e-5)
            assert torch.allclose(of_list[i], of_one[0], atol=1e-5)


def test_the_same_twice_gives_the_same_bits(case):
    model = case.load()
    first, second = (model.scene_and_timestamp_embeddings(case.audio) for _ in range(2))
    fresh = case.load().scene_and_timestamp_embeddings(case.audio)
    for a, b, c in zip(first, second, fresh, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deep", "pickle"]
)
def test_a_copy_gives_the_same_and_shares_nothing(case, copied):
    model = case.load(layers=[0, 1])
    before = model.scene_embeddings(case.audio)
    twin = copied(model)
    assert twin.config == model.config
    assert twin.options == model.options
    assert not twin.training
    assert torch.equal(twin.scene_embeddings(case.audio), before)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
    assert torch.equal(model.scene_embeddings(case.audio), before)


@pytest.fixture
def compiled_anew():
    """Nothing compiled before, nothing after; and a C++ compiler, which torch needs for it on a CPU."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")):
        pytest.skip("there is no C++ compiler, so that torch cannot compile")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The first compilation of a process takes torch some 20 seconds on one core, each further one 1 to 2.
@pytest.mark.parametrize(
    "patch", [PATCHES[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PATCHES[1:])]
)
@pytest.mark.usefixtures("compiled_anew")
def test_compiled_equals_eager_and_no_other_length_or_number_of_clips_compiles_again(
    make_model, noise, patch
):
    eager = make_model(patch=patch, frames=FRAMES)
    compiled = make_model(patch=patch, frames=FRAMES, options={"compile": True})
    batches = [noise(3, 11000), noise(1, 4000)]  # several windows in a pass, and one
    others = [noise(1, 1000), noise(2, 4000), noise(5, 30000), [noise(1, n)[0] for n in (20000, 300, 7000)]]
    for audio in batches:
        assert torch.allclose(compiled.scene_embeddings(audio), eager.scene_embeddings(audio), atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for audio in others:
            assert torch.allclose(compiled.scene_embeddings(audio), eager.scene_embeddings(audio), atol=1e-5)
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.allclose(
            twin.scene_embeddings(batches[0]), eager.scene_embeddings(batches[0]), atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_compiled_gradients_equal_eager_ones(make_model, noise, patch):
    audio = noise(2, 11000)
    gradients = []
    for options in ({}, {"compile": True}):
        model = make_model(patch=patch, frames=FRAMES, options=options)
        model(audio).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, atol=1e-5), name
