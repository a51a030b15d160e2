"""`init`: what a run continues from, from our runs and from published training files."""

import argparse
import logging
import zipfile

import numpy as np
import pytest
import torch

from hear_m2d.checkpoint.format import save_checkpoint, write_tensors
from hear_m2d.model.encoder import EncoderConfig, sincos_positions
from hear_m2d.pretrain.objectives.build import build_objective, hear_model
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OfflineConfig, Recipe, replace_fields
from hear_m2d.pretrain.training.run_folder import OBJECTIVE_KEY
from hear_m2d.pretrain.training.warm_start import warm_start

SMALL = Recipe(
    objective="m2d",
    encoder=EncoderConfig(width=64, depth=2, heads=1, input_size=(80, 48), patch_size=(16, 8)),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    steps=1,
)


def recipe_of(**fields):
    """The small recipe with other values; `offline__source` stands for offline.source."""
    return replace_fields(SMALL, {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture
def finished(tmp_path):
    """Return a finished run's checkpoint and objective, whose weights are no initial ones."""

    def make(folder="run", **fields):
        recipe = recipe_of(**fields)
        objective = build_objective(recipe)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "checkpoint.safetensors"
        save_checkpoint(path, hear_model(objective, recipe, mean=-7.0, std=4.0, training={}))
        rest = {name: t.detach().clone() for name, t in objective.beside_encoder().items()}
        write_tensors(path.with_name("objective.safetensors"), rest, {OBJECTIVE_KEY: {}})
        return path, objective

    return make


def same(a, b, prefix=""):
    names = [name for name in a if name.startswith(prefix)]
    assert names
    return all(torch.equal(a[name], b[name]) for name in names)


def test_a_run_of_ours_is_continued_with_all_its_networks(finished):
    path, before = finished()
    recipe = recipe_of(init=str(path), seed=1)
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe)
    assert same(objective.state_dict(), before.state_dict())
    assert notes == ["the encoder is taken", "the predictor is taken too", "the target network is taken too"]


@pytest.mark.parametrize("target_init", ["random", "online"])
def test_from_an_encoder_alone_the_target_starts_as_target_init_says(target_init, finished, caplog):
    path, before = finished()
    path.with_name("objective.safetensors").unlink()
    recipe = recipe_of(init=str(path), seed=1, target_init=target_init)
    objective, fresh = build_objective(recipe), build_objective(recipe)
    with caplog.at_level(logging.INFO):
        warm_start(objective, recipe)
    assert same(objective.encoder.state_dict(), before.encoder.state_dict())
    source = before.encoder if target_init == "online" else fresh.target
    assert same(objective.target.blocks.state_dict(), source.blocks.state_dict())
    assert same(objective.target.norm.state_dict(), source.norm.state_dict())
    assert same(objective.decoder.state_dict(), fresh.decoder.state_dict())
    kind = "as a copy of the encoder" if target_init == "online" else "at random"
    assert f"target network is missing: it starts {kind}" in caplog.text


def test_another_input_length_gets_the_positions_of_its_own_grid(finished):
    path, before = finished()
    recipe = recipe_of(init=str(path), encoder__input_size=(80, 96))
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe)
    assert "positions of 96 frames in place of those of 48" in notes[0]
    torch.testing.assert_close(objective.encoder.pos_embed[0, 1:], sincos_positions(64, (5, 12)))
    assert same(objective.encoder.blocks.state_dict(), before.encoder.blocks.state_dict())
    assert same(objective.decoder.state_dict(), before.decoder.state_dict())


def test_a_stored_table_of_the_same_grid_is_kept(finished, tmp_path):
    recipe = recipe_of()
    objective = build_objective(recipe)
    objective.encoder.pos_embed += 0.5  # as in a fine-tuned file
    path = tmp_path / "tuned.safetensors"
    save_checkpoint(path, hear_model(objective, recipe, mean=-7.0, std=4.0, training={}))
    other = build_objective(recipe_of(init=str(path), seed=1))
    warm_start(other, recipe_of(init=str(path), seed=1))
    assert torch.equal(other.encoder.pos_embed, objective.encoder.pos_embed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder__patch_size": (16, 16)}, r"patch_size 16x8 \(the recipe 16x16\)"),
        ({"encoder__width": 128}, r"width 64 \(the recipe 128\)"),
        ({"encoder__depth": 3}, r"depth 2 \(the recipe 3\)"),
        ({"encoder__heads": 2}, r"heads 1 \(the recipe 2\)"),
        ({"encoder__class_token": False}, r"class_token True \(the recipe False\)"),
        ({"sample_rate": 32000}, r"sample_rate 16000 \(the recipe 32000\)"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused_in_a_sentence(finished, fields, message):
    path, _ = finished()
    recipe = recipe_of(init=str(path), **fields)
    with pytest.raises(ValueError, match=message):
        warm_start(build_objective(recipe), recipe)


def test_a_predictor_of_other_sizes_gets_new_weights(finished):
    path, before = finished()
    recipe = recipe_of(init=str(path), decoder__depth=2)
    objective, fresh = build_objective(recipe), build_objective(recipe)
    assert (
        "its predictor has other sizes or belongs to another objective: it starts with new weights"
        in warm_start(objective, recipe)
    )
    assert same(objective.decoder.state_dict(), fresh.decoder.state_dict())
    assert same(objective.target.state_dict(), before.target.state_dict())


def test_an_m2d_continues_as_m2d_x_with_a_new_offline_predictor(finished):
    path, before = finished()
    recipe = recipe_of(init=str(path), offline__source="labels", offline__features=3)
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe)
    assert notes[-1] == "its offline predictor is missing: it starts with new weights"
    assert same(objective.target.state_dict(), before.target.state_dict())


def test_an_objective_beside_a_file_of_another_name_is_not_taken(finished):
    path, _ = finished()
    other = path.rename(path.with_name("other.safetensors"))
    recipe = recipe_of(init=str(other))
    assert "its predictor is missing: it starts with new weights" in warm_start(
        build_objective(recipe), recipe
    )


@pytest.mark.parametrize(
    ("name", "offline"),
    [("m2d_vit_base-80x208p16x16-220930-fxa2", ""), ("m2d_s_vit_base-80x400p80x2-230201-fxe", "features")],
)
def test_a_published_training_file_is_continued_with_all_its_networks(
    fixtures_dir, name, offline, weights_of, tmp_path
):
    (path,) = (fixtures_dir / name).glob("*.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(path, weights_only=True)["model"]
    published = {key: tensor.numpy() for key, tensor in state.items()}
    np.savez(tmp_path / "state.npz", **{f"w/{key}": value for key, value in published.items()})
    expected = weights_of(np.load(tmp_path / "state.npz"), "w/")
    high, wide = state["patch_embed.proj.weight"].shape[2:]
    recipe = Recipe(
        objective="m2d",
        offline=OfflineConfig(
            source=offline, features=state["offline_predictor.weight"].shape[0] if offline else 0
        ),
        decoder=DecoderConfig(
            width=state["mask_token"].shape[-1],
            depth=len({key.split(".")[1] for key in state if key.startswith("decoder_blocks.")}),
            heads=2,
        ),
        encoder=EncoderConfig(
            width=64,
            depth=2,
            heads=1,
            input_size=(80, int(name.split("x")[1].split("p")[0])),
            patch_size=(high, wide),
        ),
        init=str(path),
        steps=1,
    )
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe)
    assert sum("taken" in note for note in notes) == (4 if offline else 3)
    actual = objective.state_dict()
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(actual[key], tensor, atol=1e-6, err_msg=key)


def test_the_first_msm_mae_is_continued_with_its_decoder(fixtures_dir):
    (path,) = (fixtures_dir / "80x208p16x16_fxd").glob("*.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(path, weights_only=True)["model"]
    recipe = Recipe(
        objective="msm_mae",
        encoder=EncoderConfig(width=64, depth=2, heads=1, input_size=(80, 208)),
        decoder=DecoderConfig(
            width=state["mask_token"].shape[-1],
            depth=len({key.split(".")[1] for key in state if key.startswith("decoder_blocks.")}),
            heads=2,
            positions="1d",
        ),
        norm_pix_loss=False,
        init=str(path),
        steps=1,
    )
    objective = build_objective(recipe)
    notes = warm_start(objective, recipe)
    assert notes == ["the encoder is taken", "the decoder is taken too"]
    bias = objective.decoder.blocks[0].attn.qkv.bias
    third = len(bias) // 3
    assert torch.equal(bias[:third], state["decoder_blocks.0.attn.q_bias"])
    assert torch.equal(bias[2 * third :], state["decoder_blocks.0.attn.v_bias"])
    assert not bias[third : 2 * third].any()
    two = replace_fields(recipe, {"decoder.positions": "2d"})
    assert any('decoder.positions = "1d"' in note for note in warm_start(build_objective(two), two))


def test_a_zip_around_a_training_file_is_to_be_unpacked(fixtures_dir, tmp_path):
    (path,) = (fixtures_dir / "m2d_vit_base-80x208p16x16-220930-fxa2").glob("*.pth")
    packed = tmp_path / "m2d_vit_base-80x208p16x16-220930-fxa2.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "m2d_vit_base-80x208p16x16-220930-fxa2/checkpoint-300.pth")
    recipe = recipe_of(init=str(packed), encoder__input_size=(80, 208), encoder__patch_size=(16, 16))
    with pytest.raises(ValueError, match=r"unzip it, and give the \.pth in it"):
        warm_start(build_objective(recipe), recipe)
