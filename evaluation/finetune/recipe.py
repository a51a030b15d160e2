"""Fine-tuning recipes: validated settings, read from TOML; unknown keys are refused by the nearest name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from hear_m2d.utils.errors import InputError, unknown_name

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class FinetuneRecipe:
    """How a classifier is fine-tuned. The defaults are those of the published code.

    Attributes:
        description: One line; it changes nothing.
        optimizer: ``sgd`` and ``lars`` with momentum 0.9, or ``adamw`` with betas (0.9, 0.95) and amsgrad.
        learning_rate: Peak, reached after the warm-up. The loss is a mean over classes, so that 0.5 is 0.01
            on ordinary cross-entropy with 50 classes.
        weight_decay: Of all parameters.
        epochs: Length of the run.
        warmup_epochs: Linear warm-up from 0; the cosine to 1e-7 spans all epochs, as published.
        batch_size: Clips per step; an epoch's last, incomplete batch is left out.
        mixup: Alpha of the Beta distribution of a clip's share; 0 mixes nothing.
        mixup_on: Mix ``waveform`` or ``log_mel`` (its power).
        resize_crop: Random resize crop of the spectrogram.
        frequency_mask: Most mel bins that one stripe covers; 0 covers none.
        time_mask: Most frames that one stripe covers; 0 covers none.
        patch_drop: Share of patches that structured dropping leaves out. With 0 the head reads columns
            (frequency rows stacked) instead of the mean over patches.
        patch_drop_rule: ``paper`` leaves out whole rows and columns of patches; ``as_published`` keeps them
            and leaves out others, as the authors' code does.
        input_frames: Positions are resampled to this length and a clip is one window; None keeps the model's
            windows.
        freeze_patch_embedding: Do not train the patch embedding.
        sampler: ``shuffle``, or ``weighted`` by how rare a clip's labels are, without replacement.
        epoch_clips: Clips of an epoch; 0 takes all.
        unit_s: Seconds that every clip is cut or padded to; None takes the set's length, or else the model's.
    """

    description: str = ""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 2.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[int, Field(ge=1)] = 200
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    batch_size: Annotated[int, Field(ge=2)] = 128
    mixup: Annotated[float, Field(ge=0)] = 0.5
    mixup_on: Literal["waveform", "log_mel"] = "waveform"
    resize_crop: bool = True
    frequency_mask: Annotated[int, Field(ge=0)] = 30
    time_mask: Annotated[int, Field(ge=0)] = 192
    patch_drop: Annotated[float, Field(ge=0, lt=1)] = 0.5
    patch_drop_rule: Literal["paper", "as_published"] = "as_published"
    input_frames: Annotated[int | None, Field(ge=1)] = None
    freeze_patch_embedding: bool = False
    sampler: Literal["shuffle", "weighted"] = "shuffle"
    epoch_clips: Annotated[int, Field(ge=0)] = 0
    unit_s: Annotated[float | None, Field(gt=0)] = None

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object."""
        return asdict(self)


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str, settings: Sequence[str] = ()) -> FinetuneRecipe:
    """Read a recipe.

    Args:
        name: Of a recipe of the package, or the path of a TOML file.
        settings: ``field=value`` in TOML, which override the file.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: An unknown name, or a field that is unknown or out of range.
    """
    path = RECIPES / f"{name}.toml"
    if name not in recipe_names():
        path = Path(name)
        if path.suffix != ".toml":
            raise InputError(unknown_name("recipe", name, recipe_names()))
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    make_recipe(values, str(path))
    return make_recipe({**values, **parse_settings(settings)}, "--set")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return ``field=value`` texts as values; a value that is not TOML is taken as text.

    Raises:
        InputError: A text without ``=``.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting} must be FIELD=VALUE")
        try:
            values[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = text.strip()
    return values


def make_recipe(values: Mapping[str, Any], source: str) -> FinetuneRecipe:
    """Return a validated recipe.

    Args:
        values: Its fields.
        source: What errors call it.

    Raises:
        InputError: A field that is unknown or out of range.
    """
    known = [field.name for field in fields(FinetuneRecipe)]
    for name in values:
        if name not in known:
            raise InputError(f"{source}: {unknown_name('field', name, known)}")
    try:
        return FinetuneRecipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{source}: {name} is {first['input']!r}: {first['msg']}") from error
