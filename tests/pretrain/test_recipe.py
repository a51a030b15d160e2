"""Recipes: every shipped one is whole, and a wrong field is named with what was meant."""

import pytest

from hear_m2d.pretrain.build import build_objective
from hear_m2d.pretrain.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_says_what_it_is_and_builds(name):
    recipe = load_recipe(name)
    assert recipe.description
    assert build_objective(recipe).encoder.config == recipe.encoder_config


def test_unknown_recipe_shows_the_nearest_names():
    with pytest.raises(ValueError, match="Did you mean demo_m2d"):
        load_recipe("demo_m2")


def test_unknown_field_shows_the_nearest_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('objective = "m2d"\nsteps = 1\nmask_ration = 0.5\n')
    with pytest.raises(ValueError, match=r"mine\.toml.*mask_ration.*Did you mean mask_ratio"):
        load_recipe(path)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("objective: m2d")
    with pytest.raises(ValueError, match=r"mine\.toml is not a TOML file"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "mae"),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.9999),
        ("mask_ratio", "0.7"),
        ("batch_size", 0),
        ("batch_size", 12.5),
        ("patch_size", [16]),
        ("patch_size", [17, 16]),
        ("momentum_end", 1.5),
        ("target_init", "copy"),
        ("decoder_pos", "3d"),
        ("width", 190),
        ("steps", -1),
        ("epochs", 3),  # besides steps
        ("class_token", 1),
        ("min_lr", -1.0),
        ("decoder_depth", 0),
        ("decoder_width", 30),
        ("patch_size", 16),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    fields = {"objective": "m2d", "steps": 10, field: value}
    with pytest.raises(ValueError, match=field if field not in ("patch_size", "width") else "."):
        parse_recipe(fields, "mine.toml")


def test_the_rate_grows_with_the_batch_as_published():
    recipe = Recipe(objective="m2d", epochs=300)  # the published defaults
    assert recipe.learning_rate == pytest.approx(2.4e-3)
    mae = Recipe(objective="msm_mae", epochs=100, base_lr=1.5e-4, base_batch=128, batch_size=256)
    assert mae.learning_rate == pytest.approx(3e-4)


def test_a_bare_msm_mae_recipe_is_the_published_msm_mae():
    recipe = parse_recipe({"objective": "msm_mae", "epochs": 100}, "mine.toml")
    assert (recipe.mask_ratio, recipe.norm_pix_loss) == (0.75, False)
    assert (recipe.decoder_width, recipe.decoder_depth, recipe.decoder_heads) == (384, 4, 6)


def test_a_field_of_the_target_network_is_refused_for_msm_mae():
    with pytest.raises(ValueError, match=r"momentum_start is a field of M2D"):
        parse_recipe({"objective": "msm_mae", "epochs": 1, "momentum_start": 0.9}, "mine.toml")
