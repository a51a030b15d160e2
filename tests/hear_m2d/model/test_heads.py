"""M2D-CLAP's audio projectors against slow references in float64, and through the whole model."""

import dataclasses
import math

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import read_checkpoint, save_checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.heads import ProjectorConfig, make_projector

MEAN = ProjectorConfig(kind="mean", width=24, hidden=40)
SEMANTIC = ProjectorConfig(kind="semantic", width=64, hidden=70, depth=2)


@pytest.fixture(params=[MEAN, SEMANTIC], ids=["2024", "2025"])
def config(request):
    return request.param


@pytest.fixture
def clap(make_model, config):
    """A narrow M2D-CLAP with every weight random."""
    model = make_model(kind="m2d_clap", projector=config, heads=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def mean_reference(w, tokens):
    hidden = tokens.mean(0) @ w["hidden.weight"].T + w["hidden.bias"]
    return hidden.clamp(min=0) @ w["out.weight"].T + w["out.bias"]


def semantic_reference(w, tokens):
    x = torch.cat([w["token"][0], tokens])
    for index in range(SEMANTIC.depth):
        start = f"blocks.{index}."
        b = {name.removeprefix(start): tensor for name, tensor in w.items() if name.startswith(start)}
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"], 1e-5)
        q, k, v = (y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).split(x.shape[1], dim=1)
        weights = torch.softmax(q @ k.T / math.sqrt(x.shape[1]), dim=1)  # one head
        x = x + (weights @ v) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"], 1e-5)
        y = gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return layer_norm(x[0], w["norm.weight"], w["norm.bias"], 1e-5)


def test_the_vector_equals_a_slow_reference(clap, config, noise):
    audio = noise(2, 24000)
    reference = mean_reference if config.kind == "mean" else semantic_reference
    weights = {name: tensor.double() for name, tensor in clap.projector.state_dict().items()}
    with torch.no_grad():
        found = clap.project(audio)
    assert found.shape == (2, config.width)
    for vector, columns in zip(found, clap.columns(audio), strict=True):
        expected = reference(weights, columns.double().reshape(-1, 64))
        torch.testing.assert_close(vector, expected.float(), atol=2e-5, rtol=0)


def test_the_hidden_features_are_those_of_the_config():
    for hidden in range(60, 80):
        config = dataclasses.replace(SEMANTIC, hidden=hidden)
        assert make_projector(64, config).blocks[1].mlp.fc1.out_features == hidden


def test_the_semantic_norms_have_pytorchs_eps():
    projector = make_projector(64, SEMANTIC)
    norms = [part for part in projector.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert {norm.eps for norm in norms} == {1e-5}


def test_clips_of_any_lengths_give_one_row_each_as_if_alone(clap, noise):
    clips = [noise(1, samples, seed=samples)[0] for samples in (900, 24000, 50000)]
    with torch.no_grad():
        together = clap.project(clips)
        alone = torch.cat([clap.project(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_model_cast_as_a_whole_still_projects(clap, noise):
    with torch.no_grad():
        expected = clap.project(noise(2, 16000))
        found = clap.to(torch.bfloat16).project(noise(2, 16000))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.1)


def test_gradients_reach_the_projector_and_the_encoder(clap, noise):
    clap.project(noise(2, 16000)).square().sum().backward()
    for name, parameter in clap.named_parameters():
        assert parameter.grad is not None, name
    assert clap.encoder.patch_embed.proj.weight.grad.any()


def test_a_saved_projector_comes_back_bit_for_bit(clap, noise, tmp_path):
    path = tmp_path / "clap.safetensors"
    save_checkpoint(path, clap)
    again = hear_m2d.load_model(path)
    assert again.config == clap.config
    assert {name.split(".")[0] for name in read_checkpoint(path).tensors} > {"projector", "blocks"}
    assert torch.equal(again.project(noise(2, 16000)), clap.project(noise(2, 16000)))


def test_a_projector_of_other_sizes_than_its_tensors_is_refused(clap, config, tmp_path):
    path = tmp_path / "clap.safetensors"
    clap.config = dataclasses.replace(clap.config, projector=dataclasses.replace(config, hidden=41))
    save_checkpoint(path, clap)
    with pytest.raises(ValueError, match=r"clap\.safetensors: .*projector\."):
        hear_m2d.load_model(path)


def test_a_model_without_a_projector_says_so(make_model, noise):
    with pytest.raises(ValueError, match="no audio projector"):
        make_model().project(noise(1, 16000))


@pytest.mark.parametrize(
    "values",
    [{"kind": "max"}, {"width": 0}, {"hidden": 1.5}, {"depth": 1}, {"kind": "semantic"}, {"hidden": True}],
)
def test_a_projector_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=r"projector|integer|at least 1"):
        ProjectorConfig(**values)


def test_a_semantic_projector_is_as_wide_as_its_tokens():
    with pytest.raises(ValueError, match="as its tokens have"):
        make_projector(128, SEMANTIC)


def test_the_config_of_a_projector_survives_json(config):
    whole = ModelConfig(projector=config)
    assert ModelConfig.from_json(whole.to_json()) == whole
    with pytest.raises(ValueError, match=r"field 'hiden'\. Did you mean hidden"):
        ModelConfig.from_json({**whole.to_json(), "projector": {"kind": "mean", "hiden": 3}})
