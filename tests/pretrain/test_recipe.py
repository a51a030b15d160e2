"""Recipes: every shipped one is whole, and a wrong field is named with what was meant."""

import dataclasses

import pytest
import torch

from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_says_what_it_is_and_builds(name):
    recipe = load_recipe(name)
    assert recipe.description
    if recipe.offline and not recipe.offline_features:  # the teacher or the data says how many
        recipe = dataclasses.replace(recipe, offline_features=3840)
    with torch.device("meta"):
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
        ("noise_ratio", 1.0),
        ("noise_ratio", -0.1),
        ("offline", "audio"),
        ("offline_weight", -1),
        ("offline_features", 2.5),
        ("teacher", "somebody.pth"),  # without offline = "teacher"
        ("teacher_statistics", "mine"),
        ("feature_frames", 0),
        ("beta2", 1.0),
        ("base_lr", float("nan")),
        ("deviations", "none"),
        ("ours", [3]),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    fields = {"objective": "m2d", "steps": 10, field: value}
    with pytest.raises(ValueError, match=field if field not in ("patch_size", "width") else "."):
        parse_recipe(fields, "mine.toml")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"warmup": 20}, r"warmup = 20 is out of range: it is a share of the run, .* not steps or epochs"),
        (
            {"mask_ratio": 70},
            r"mask_ratio = 70 is out of range: it is a share of the patches, between 0 and 1",
        ),
        ({"batch_size": -1}, "batch_size = -1 is out of range: it is 1 or more"),
        ({"decoder_width": 500}, "decoder_width = 500 .* a multiple of 4 and of decoder_heads, 16"),
        ({"decoder_heads": 0}, "decoder_heads = 0 is out of range"),
        ({"offline": "noise"}, 'it is one of "", teacher, labels, features'),
    ],
)
def test_a_value_out_of_range_is_told_what_the_range_is(fields, said):
    with pytest.raises(ValueError, match=said):
        parse_recipe({"objective": "m2d", "steps": 10, **fields}, "mine.toml")


def test_the_rate_grows_with_the_batch_as_published():
    recipe = Recipe(objective="m2d", epochs=300)  # the published defaults
    assert recipe.learning_rate == pytest.approx(2.4e-3)
    mae = Recipe(objective="msm_mae", epochs=100, base_lr=1.5e-4, base_batch=128, batch_size=256)
    assert mae.learning_rate == pytest.approx(3e-4)


def test_a_bare_msm_mae_recipe_is_the_published_msm_mae():
    recipe = parse_recipe({"objective": "msm_mae", "epochs": 100}, "mine.toml")
    assert (recipe.mask_ratio, recipe.norm_pix_loss) == (0.75, False)
    assert (recipe.decoder_width, recipe.decoder_depth, recipe.decoder_heads) == (384, 4, 6)


@pytest.mark.parametrize(("field", "value"), [("momentum_start", 0.9), ("offline", "labels")])
def test_a_field_of_m2d_is_refused_for_msm_mae(field, value):
    with pytest.raises(ValueError, match=rf"{field} is a field of M2D, and this recipe trains MSM-MAE"):
        parse_recipe({"objective": "msm_mae", "epochs": 1, field: value}, "mine.toml")


def test_a_recipe_with_a_base_names_only_what_differs(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "m2d_base"\nmask_ratio = 0.5\nsteps = 10\ndeviations = ["short"]\n')
    recipe, base = load_recipe(mine), load_recipe("m2d_base")
    assert (recipe.mask_ratio, recipe.steps, recipe.epochs) == (0.5, 10, None)
    assert recipe.deviations == (*base.deviations, "short")
    changed = {"mask_ratio", "steps", "epochs", "deviations"}
    for field in dataclasses.fields(Recipe):
        if field.name not in changed:
            assert getattr(recipe, field.name) == getattr(base, field.name)


def test_a_base_may_be_a_file_beside_the_recipe_whatever_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.toml").write_text('objective = "m2d"\nsteps = 7\n')
    (tmp_path / "own" / "b.toml").write_text('base = "a.toml"\nmask_ratio = 0.5\n')
    assert load_recipe(tmp_path / "own" / "b.toml").steps == 7
    monkeypatch.chdir(tmp_path)
    assert load_recipe("own/b.toml").steps == 7


def test_a_base_that_leads_back_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "../' + tmp_path.name + '/a.toml"\n')
    with pytest.raises(ValueError, match="its base leads back to itself"):
        load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize("base", ["3", '"m2d_bas"'])
def test_a_base_that_is_none_is_refused(tmp_path, base):
    (tmp_path / "a.toml").write_text(f"base = {base}\n")
    with pytest.raises(ValueError, match=r"it is a recipe's name|Did you mean m2d_base"):
        load_recipe(tmp_path / "a.toml")


def test_the_record_of_a_run_holds_what_trains_it_and_not_the_page():
    recipe = load_recipe("m2d_base")
    record = recipe.to_json()
    assert record["mask_ratio"] == 0.7
    assert record["description"]
    assert not {"deviations", "ours", "reproduces", "published_clips"} & record.keys()
    assert Recipe(**record).encoder_config == recipe.encoder_config


def test_recipes_of_earlier_runs_are_read():
    """A record of a run that began before M2D-X lacks its fields."""
    record = load_recipe("laptop_m2d").to_json()
    new = ("offline", "online_weight", "noise_ratio", "init", "teacher", "compile")
    old = {name: value for name, value in record.items() if name not in new}
    assert Recipe(**old).to_json() == record
