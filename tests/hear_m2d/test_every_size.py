"""Every full size × common patch, once: forward, backward, saved and loaded (`make test-full`)."""

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import SIZES, EncoderConfig
from hear_m2d.model.hear_model import HearModel

PATCHES = [(16, 16), (16, 8), (16, 4), (80, 2), (80, 4)]
FRAMES = 208  # of a window


@pytest.fixture
def path(tmp_path):
    """Where to save; removed at once, since pytest keeps its folders and a large network has a gigabyte."""
    path = tmp_path / "model.safetensors"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.full
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: "x".join(map(str, patch)))
@pytest.mark.parametrize("size", SIZES)
def test_a_full_size_embeds_has_gradients_and_is_saved_and_loaded(size, patch, noise, path):
    width, depth, heads = SIZES[size]
    encoder = EncoderConfig(input_size=(80, FRAMES), patch_size=patch, width=width, depth=depth, heads=heads)
    torch.manual_seed(0)
    model = HearModel(ModelConfig(encoder=encoder)).eval()
    audio = noise(1, 250 * 160)  # two windows
    scenes, embeddings, times = model.scene_and_timestamp_embeddings(audio)
    assert scenes.shape == (1, 80 // patch[0] * width)
    assert embeddings.shape == (*times.shape, scenes.shape[1])
    assert scenes.isfinite().all()
    assert embeddings.isfinite().all()

    model(audio).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
        parameter.grad = None

    columns = model.columns(audio)
    expected = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items()}
    save_checkpoint(path, model)
    del model
    again = hear_m2d.load_model(path)
    assert again.config.encoder == encoder
    assert {name: tensor.double().sum().item() for name, tensor in again.state_dict().items()} == expected
    assert torch.equal(again.columns(audio), columns)
