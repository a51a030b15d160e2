"""Recipes: each file of the package is valid; the published settings; what is wrong is named."""

import pytest

from hear_m2d.evaluation.finetune.recipe import read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_says_what_it_is_for(name):
    assert read_recipe(name).description


def test_the_recipes_are_the_published_ones():
    facts = {
        name: (r.optimizer, r.learning_rate, r.epochs, r.batch_size, r.mixup, r.input_frames, r.patch_drop)
        for name in ("as2m", "as20k", "esc50", "spcv2", "vc1")
        for r in [read_recipe(name)]
    }
    assert facts == {
        "as2m": ("lars", 2.0, 70, 64, 0.5, 1001, 0.5),
        "as20k": ("sgd", 0.5, 200, 64, 0.3, 1001, 0.5),
        "esc50": ("sgd", 0.5, 200, 128, 0.0, 501, 0.5),
        "spcv2": ("sgd", 0.5, 200, 128, 0.3, None, 0.5),
        "vc1": ("adamw", 5e-4, 50, 64, 0.0, 821, 0.0),
    }
    assert read_recipe("esc50").freeze_patch_embedding
    assert (read_recipe("as2m").sampler, read_recipe("as2m").epoch_clips) == ("weighted", 200000)


def test_fields_are_set_by_hand_and_read_from_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("epochs = 3\n")
    recipe = read_recipe(str(tmp_path / "mine.toml"), ["optimizer=adamw", "learning_rate=1e-3", "mixup=0.0"])
    assert (recipe.epochs, recipe.optimizer, recipe.learning_rate, recipe.mixup) == (3, "adamw", 1e-3, 0)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("esc5", [], r"unknown recipe 'esc5'.* Did you mean esc50"),
        ("esc50", ["epoch=3"], r"unknown field 'epoch'.* Did you mean epochs"),
        ("esc50", ["epochs"], "must be FIELD=VALUE"),
        ("esc50", ["epochs=0"], "epochs is 0"),
        ("esc50", ["learning_rate=inf"], "--set: learning_rate is inf"),
        ("esc50", ["epochs=2.5"], "epochs is 2.5"),
        ("esc50", ["optimizer=adam"], "optimizer is 'adam'.*'sgd', 'lars' or 'adamw'"),
        ("esc50", ["patch_drop=1.0"], "patch_drop is 1.0"),
    ],
)
def test_what_is_wrong_is_named(name, settings, says):
    with pytest.raises(ValueError, match=says):
        read_recipe(name, settings)
