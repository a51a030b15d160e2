"""The shipped recipes: published fields where there are some, and what each says of itself."""

import dataclasses

import pytest

from hear_m2d.pretrain.recipe import FIELDS, Recipe, load_recipe, shipped_recipes

PUBLISHED = sorted(name for name in shipped_recipes() if load_recipe(name).published.clips)

# method, sizes, ratio, length: what was published of each.
COMMON_M2D = {
    "objective": "m2d", "width": 768, "depth": 12, "heads": 12, "class_token": True, "norm_pix_loss": True,
    "loss": "cosine", "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16,
    "decoder_positions": "2d",
    "target_init": "random", "target_input": "masked", "momentum_start": 0.99995, "momentum_end": 0.99999,
    "base_lr": 3e-4, "base_batch": 256, "min_lr": 0.0, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95,
    "clip_grad": 3.0, "seed": 3, "sample_rate": 16000, "noise_ratio": 0.0,
}  # fmt: skip
AUDIOSET = {"batch_size": 2048, "warmup": 20 / 300, "epochs": 300}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
SPEECH = {
    "patch_size": (80, 2), "mask_ratio": 0.6, "source": "features", "features": 768,
    "online_weight": 1.0, "offline_weight": 0.5, "noise_ratio": 0.2, "batch_size": 2048,
    "warmup": 60 / 1000, "epochs": 1000,
}  # fmt: skip
LABELS = {"source": "labels", "features": 0, "online_weight": 1.0, "offline_weight": 1.0}
COMMON_MAE = {
    "objective": "msm_mae", "width": 768, "depth": 12, "heads": 12, "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "decoder_width": 384, "decoder_depth": 4, "decoder_heads": 6, "patch_size": (16, 16),
    "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95, "min_lr": 0.0, "sample_rate": 16000,
}  # fmt: skip
MAE_2022 = {
    "base_lr": 1.5e-4, "base_batch": 128, "warmup": 10 / 100, "epochs": 100, "clip_grad": 0.0,
    "decoder_positions": "1d",
}  # fmt: skip
MAE_608 = {
    "input_frames": 608, "base_lr": 3e-4, "base_batch": 256, "warmup": 20 / 300, "epochs": 300,
    "clip_grad": 3.0, "decoder_positions": "2d",
}  # fmt: skip
WANTED = {
    "m2d_base": COMMON_M2D | AUDIOSET | {"input_frames": 608, "patch_size": (16, 16), "mask_ratio": 0.7},
    "m2d_base_mr6": COMMON_M2D | AUDIOSET | {"input_frames": 608, "patch_size": (16, 16), "mask_ratio": 0.6},
    "m2d_base_16x4": COMMON_M2D | AUDIOSET | {"input_frames": 200, "patch_size": (16, 4), "mask_ratio": 0.7},
    "m2d_base_data2vec": COMMON_M2D | AUDIOSET | {"target_input": "all"},
    "m2d_large": COMMON_M2D | AUDIOSET | LARGE,
    "m2d_as_base": COMMON_M2D | AUDIOSET | LABELS | {"input_frames": 608, "mask_ratio": 0.7},
    "m2d_as_base_32k": COMMON_M2D | AUDIOSET | LABELS | {"input_frames": 608, "sample_rate": 32000},
    **{f"m2d_s_{n}": COMMON_M2D | SPEECH | {"input_frames": n} for n in (400, 512, 608)},
    "m2d_x_further": COMMON_M2D
    | {
        "input_frames": 200, "patch_size": (16, 4), "mask_ratio": 0.7, "source": "teacher",
        "target_init": "online",
        "offline_weight": 1.0, "noise_ratio": 0.3, "batch_size": 128, "steps": 600 * (10000 // 128),
    },
    **{f"msm_mae_base_{n}": COMMON_MAE | MAE_2022 | {"input_frames": n} for n in (208, 304, 400, 512)},
    "msm_mae_base_608": COMMON_MAE | MAE_608,
    "msm_mae_large_608": COMMON_MAE | MAE_608 | LARGE,
}  # fmt: skip


def test_every_published_recipe_is_shipped():
    assert set(WANTED) == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_fields_are_those_published(name):
    recipe = load_recipe(name)
    fields = {**recipe.to_json(), "input_frames": recipe.frames}
    for table in ("encoder", "decoder", "optimizer", "offline"):
        fields |= {f"decoder_{k}" if table == "decoder" else k: v for k, v in fields[table].items()}
    actual = {name: tuple(v) if isinstance(v := fields[name], list) else v for name in WANTED[name]}
    assert actual == WANTED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_tells_its_deviations(name):
    recipe = load_recipe(name)
    deviations = " ".join(recipe.published.deviations)
    assert len(set(recipe.published.deviations)) == len(recipe.published.deviations)
    for what in ("padded with the mean", "without a gradient scaler", "measured once over the whole set"):
        assert what in deviations
    assert recipe.published.reproduces or recipe.published.ours  # what nobody published is ours


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - set(PUBLISHED)))
def test_a_recipe_of_ours_claims_to_reproduce_nothing(name):
    recipe = load_recipe(name)
    assert not recipe.published.reproduces
    assert not recipe.published.hours


def test_a_field_named_as_ours_is_a_field():
    names = {field.name for field in dataclasses.fields(Recipe)}.union(*FIELDS.values())
    for name in shipped_recipes():
        for text in load_recipe(name).published.ours:
            if ":" in text and " " not in text.split(":")[0]:
                assert text.split(":")[0] in names, f"{name}: {text}"


def test_the_published_rates_come_out_at_their_batches():
    assert load_recipe("m2d_base").learning_rate == pytest.approx(2.4e-3)
    assert load_recipe("m2d_x_further").learning_rate == pytest.approx(1.5e-4)
    # 1.5e-4 at 128 is the rate of 3e-4 at 256.
    mae = dataclasses.replace(load_recipe("msm_mae_base_208"), batch_size=2048)
    assert mae.learning_rate == pytest.approx(load_recipe("msm_mae_base_608").learning_rate)


def test_the_small_momentum_forgets_the_random_start_as_the_published_does():
    """The sum of 1 - momentum over the run is that of 300 epochs of AudioSet."""

    def forgotten(recipe, steps):
        return steps * (1 - (recipe.momentum_start + recipe.momentum_end) / 2)

    small, base = load_recipe("m2d_small"), load_recipe("m2d_base")
    published = forgotten(base, 300 * (2005132 // 2048))
    assert forgotten(small, small.steps) == pytest.approx(published, rel=0.01)
    ratios = [(1 - r.momentum_start) / (1 - r.momentum_end) for r in (small, base)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.01)
