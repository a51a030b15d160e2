"""The untrained network: the checkpoint's architecture, none of its weights."""

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.evaluation.baselines import untrained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from hear_m2d.model.config import ModelConfig
    from hear_m2d.model.encoder import EncoderConfig
    from hear_m2d.model.frontend import FrontendConfig
    from hear_m2d.model.hear_model import HearModel

    torch.manual_seed(7)
    encoder = EncoderConfig(input_size=(80, 48), patch_size=(16, 16), width=24, depth=2, heads=2)
    config = ModelConfig(kind="m2d", encoder=encoder, frontend=FrontendConfig(), mean=-9.0, std=4.0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(path, HearModel(config))
    return path


def test_the_weights_are_not_the_checkpoint_s_and_the_rest_is(checkpoint):
    trained, fresh = hear_m2d.load_model(checkpoint), untrained.load_model(checkpoint)
    assert fresh.config == trained.config
    assert torch.equal(fresh.encoder.pos_embed, trained.encoder.pos_embed)
    assert not torch.equal(fresh.encoder.patch_embed.proj.weight, trained.encoder.patch_embed.proj.weight)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(checkpoint):
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1

    def scene(seed):
        model = untrained.load_model(checkpoint, seed=seed)
        return untrained.get_scene_embeddings(audio, model)

    assert torch.equal(scene(1), scene(1))
    assert not torch.allclose(scene(1), scene(2), atol=1e-3)


def test_the_random_state_of_the_caller_is_left_as_it_was(checkpoint):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained.load_model(checkpoint)
    assert torch.equal(torch.rand(3), expected)


def test_options_of_the_model_reach_it(checkpoint):
    assert untrained.load_model(checkpoint, output="mean").scene_embedding_size == 24
