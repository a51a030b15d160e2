"""Recipes: every shipped one is whole, and a wrong field is named with what was meant."""

import dataclasses

import pytest
import torch

from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.recipe import (
    FLAT_NAMES,
    OptimizerConfig,
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_of_record,
    replace_fields,
    shipped_recipes,
)


def tables(fields):
    """Nest the fields whose names have a dot."""
    nested = {}
    for name, value in fields.items():
        table, _, field = name.rpartition(".")
        if table:
            nested.setdefault(table, {})[field] = value
        else:
            nested[field] = value
    return nested


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_says_what_it_is_and_builds(name):
    recipe = load_recipe(name)
    assert recipe.description
    if recipe.offline.source and not recipe.offline.features:  # the teacher or the data says how many
        recipe = replace_fields(recipe, {"offline.features": 3840})
    with torch.device("meta"):
        assert build_objective(recipe).encoder.config == recipe.encoder


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
        ("encoder.patch_size", [16]),
        ("encoder", {"patch_size": [17, 16]}),
        ("encoder.patch_size", 16),
        ("encoder.width", 190),
        ("encoder.class_token", 1),
        ("encoder.input_size", [64, 208]),
        ("momentum_end", 1.5),
        ("target_init", "copy"),
        ("decoder.positions", "3d"),
        ("decoder.depth", 0),
        ("decoder.width", 30),
        ("steps", -1),
        ("epochs", 3),  # besides steps
        ("optimizer.min_lr", -1.0),
        ("optimizer.beta2", 1.0),
        ("optimizer.base_lr", float("nan")),
        ("noise_ratio", 1.0),
        ("noise_ratio", -0.1),
        ("offline.source", "audio"),
        ("offline.offline_weight", -1),
        ("offline.features", 2.5),
        ("offline.teacher", "somebody.pth"),  # without offline.source = "teacher"
        ("offline.teacher_statistics", "mine"),
        ("offline.feature_frames", 0),
        ("published.deviations", "none"),
        ("published.ours", [3]),
        ("encoder", 3),
        ("compile", "yes"),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field.replace(".", r"\]?.*")):
        parse_recipe(tables({"objective": "m2d", "steps": 10, field: value}), "mine.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"optimizer.warmup": 20},
            r"optimizer\.warmup = 20: it must be less than 1 \(a share of the run, not a number of steps",
        ),
        ({"mask_ratio": 70}, r"mask_ratio = 70: it must be less than 1 \(a share of the patches\)"),
        ({"batch_size": -1}, "batch_size = -1: it must be greater than or equal to 1"),
        ({"decoder.width": 500}, r"decoder\.width = 500 .* a multiple of 4 and of decoder\.heads, 16"),
        ({"decoder.heads": 0}, r"decoder\.heads = 0"),
        ({"offline.source": "noise"}, "it must be '', 'teacher', 'labels' or 'features'"),
        ({"encoder.width": 3.5}, r"encoder\.width = 3\.5: it must be a valid integer"),
    ],
)
def test_the_error_for_a_value_says_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(tables({"objective": "m2d", "steps": 10, **fields}), "mine.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("width = 192", r"width is now in a table, .* write \[encoder\], and below it width"),
        ("input_frames = 208", r"write \[encoder\], and below it input_size"),
        ("decoder_pos = '1d'", r"write \[decoder\], and below it positions"),
        ("base_lr = 1e-3", r"write \[optimizer\], and below it base_lr"),
        ("offline = 'labels'", r"write \[offline\], and below it source"),
        ("published_clips = 3", r"write \[published\], and below it clips"),
    ],
)
def test_a_flat_recipe_of_version_0_1_is_refused_with_the_table_named(line, message, tmp_path):
    (tmp_path / "old.toml").write_text(f'objective = "m2d"\n{line}\nsteps = 1\n')
    with pytest.raises(ValueError, match=rf"old\.toml: .*{message}"):
        load_recipe(tmp_path / "old.toml")


def test_the_rate_grows_with_the_batch_as_published():
    recipe = Recipe(objective="m2d", epochs=300)  # the published defaults
    assert recipe.learning_rate == pytest.approx(2.4e-3)
    mae = Recipe(
        objective="msm_mae",
        optimizer=OptimizerConfig(base_lr=0.00015, base_batch=128),
        epochs=100,
        batch_size=256,
    )
    assert mae.learning_rate == pytest.approx(3e-4)


def test_a_bare_msm_mae_recipe_is_the_published_msm_mae():
    recipe = parse_recipe({"objective": "msm_mae", "epochs": 100}, "mine.toml")
    assert (recipe.mask_ratio, recipe.norm_pix_loss) == (0.75, False)
    assert (recipe.decoder.width, recipe.decoder.depth, recipe.decoder.heads) == (384, 4, 6)


@pytest.mark.parametrize(("field", "value"), [("momentum_start", 0.9), ("offline", {"source": "labels"})])
def test_a_field_of_m2d_is_refused_for_msm_mae(field, value):
    with pytest.raises(ValueError, match=rf"{field} is only used by M2D, and this recipe trains MSM-MAE"):
        parse_recipe({"objective": "msm_mae", "epochs": 1, field: value}, "mine.toml")


def test_a_recipe_with_a_base_names_only_what_differs(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "m2d_base"\nmask_ratio = 0.5\nsteps = 10\npublished.deviations = ["short"]\n')
    recipe, base = load_recipe(mine), load_recipe("m2d_base")
    assert (recipe.mask_ratio, recipe.steps, recipe.epochs) == (0.5, 10, None)
    assert recipe.published.deviations == (*base.published.deviations, "short")
    changed = {"mask_ratio", "steps", "epochs", "published"}
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
def test_a_base_that_is_not_a_recipe_is_refused(tmp_path, base):
    (tmp_path / "a.toml").write_text(f"base = {base}\n")
    with pytest.raises(ValueError, match=r"it must be a recipe's name|Did you mean m2d_base"):
        load_recipe(tmp_path / "a.toml")


def test_the_record_of_a_run_holds_its_settings_and_not_the_published_facts():
    recipe = load_recipe("m2d_base")
    record = recipe.to_json()
    assert record["mask_ratio"] == 0.7
    assert record["description"]
    assert not {"published"} & record.keys()
    assert parse_recipe(record, "run.json").encoder == recipe.encoder


def test_the_record_of_a_run_that_lacks_new_fields_is_read_with_their_defaults():
    record = load_recipe("laptop_m2d").to_json()
    new = ("offline", "noise_ratio", "init", "compile")
    old = {name: value for name, value in record.items() if name not in new}
    assert recipe_of_record(old, "run.json").to_json() == record


@pytest.mark.parametrize("name", ["laptop_msm_mae", "m2d_base", "m2d_s_400"])
def test_the_flat_record_of_a_run_of_version_0_1_is_read(name):
    recipe = load_recipe(name)
    nested = recipe.to_json()
    flat = {}
    for old, new in FLAT_NAMES.items():
        table, _, field = new.partition(".")
        if table in nested:
            flat[old] = nested[table][field]
    flat["input_frames"] = recipe.frames
    flat |= {key: value for key, value in nested.items() if not isinstance(value, dict)}
    flat["compile"] = False
    assert recipe_of_record(flat, "run.json").to_json() == nested


def test_a_record_of_a_later_version_is_refused_by_the_field_that_is_unknown():
    record = {**load_recipe("laptop_m2d").to_json(), "loudness": 3}
    with pytest.raises(ValueError, match=r"run\.json: unknown recipe field 'loudness'"):
        recipe_of_record(record, "run.json")
