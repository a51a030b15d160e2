"""Read recipes: TOML files with tables and a base, shipped recipes, and the recipes in records of runs."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe_fields import STRICT, PublishedConfig
from hear_m2d.pretrain.recipe_fields import OfflineConfig as OfflineConfig
from hear_m2d.pretrain.recipe_fields import OptimizerConfig as OptimizerConfig
from hear_m2d.pretrain.recipe_fields import Recipe as Recipe
from hear_m2d.pretrain.recipe_fields import replace_fields as replace_fields
from hear_m2d.utils.errors import InputError, unknown_name

TABLES = {
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "optimizer": OptimizerConfig,
    "offline": OfflineConfig,
    "published": PublishedConfig,
}
FIELDS = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in TABLES.items()}
# pydantic checks the types; the plain dataclass checks that the sizes fit one another.
_CHECKED = {
    "encoder": dataclass(EncoderConfig, frozen=True, config=STRICT),
    "decoder": dataclass(DecoderConfig, frozen=True, config=STRICT),
}
# Values of the published MSM-MAE; those of M2D are the defaults of the fields.
MSM_MAE_DEFAULTS: dict[str, Any] = {
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "decoder": {"width": 384, "depth": 4, "heads": 6},
}
M2D_ONLY = (
    *("loss", "target_init", "target_input", "batch_norm_target", "momentum_start", "momentum_end"),
    "offline",
)
# Version 0.1 had no tables: where its fields are now.
FLAT_NAMES = {
    **{name: f"encoder.{name}" for name in ("width", "depth", "heads", "class_token", "patch_size")},
    "input_frames": "encoder.input_size",
    **{f"decoder_{name}": f"decoder.{name}" for name in ("width", "depth", "heads")},
    "decoder_pos": "decoder.positions",
    **{name: f"optimizer.{name}" for name in FIELDS["optimizer"]},
    **{name: f"offline.{name}" for name in FIELDS["offline"]},
    "offline": "offline.source",
    "offline_features": "offline.features",
    "reproduces": "published.reproduces",
    **{f"published_{name}": f"published.{name}" for name in ("clips", "hours", "scores")},
    **{name: f"published.{name}" for name in ("deviations", "ours")},
}


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(resources.files("hear_m2d.pretrain") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a TOML file.

    A file with ``base = "m2d_base"`` contains only what differs from that recipe (shipped, or a path beside
    the file); its ``deviations`` are added to those of the base.

    Args:
        name: A shipped recipe's name, or a path.
        overrides: Values by ``field`` or ``table.field``, which replace those of the file.

    Raises:
        InputError: There is no such recipe (the nearest names are shown), the file is not TOML, or a field
            is unknown or out of range.
    """
    fields, path = _read_file(name)
    for key, value in (overrides or {}).items():
        table, _, field = key.rpartition(".")
        fields = _merge(fields, {table: {field: value}} if table else {field: value}, str(path))
    return parse_recipe(fields, str(path))


def parse_recipe(fields: Mapping[str, Any], where: str, *, allow_unused: bool = False) -> Recipe:
    """Build a recipe from nested tables, as a TOML file holds them; ``where`` names it in messages.

    With ``allow_unused``, fields of M2D are accepted in a recipe of MSM-MAE.

    Raises:
        InputError: A field is unknown (the nearest name is shown), missing or out of range.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name, value in fields.items():
        is_table = isinstance(value, dict)
        if name in FLAT_NAMES and not (name in TABLES and is_table):
            table, _, field = FLAT_NAMES[name].partition(".")
            raise InputError(
                f"{where}: {name} is now in a table, since version 0.2: write [{table}], and below it {field}"
            )
        if name not in known:
            raise InputError(f"{where}: {unknown_name('recipe field', name, known)}")
        if name in TABLES and not is_table:
            raise InputError(f"{where}: {name} must be a table: write [{name}], and its fields below it")
    if fields.get("objective") == "msm_mae":
        unused = [name for name in M2D_ONLY if name in fields]
        if unused and not allow_unused:
            raise InputError(f"{where}: {unused[0]} is only used by M2D, and this recipe trains MSM-MAE")
        fields = _merge(MSM_MAE_DEFAULTS, fields, where)
    tables = {name: _table(name, value, where) for name, value in fields.items() if name in TABLES}
    try:
        return Recipe(**{**fields, **tables})
    except ValidationError as error:
        raise InputError(f"{where}: {_sentences(error, Recipe)}") from None


def recipe_of_record(fields: Mapping[str, Any], where: str) -> Recipe:
    """Read the ``recipe`` of a run's record, also of a run that version 0.1 began.

    Missing fields get their defaults: the run's version did not have them yet. An InputError names a field
    that this version does not know, or a value out of range.
    """
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        if name in FLAT_NAMES and not isinstance(value, dict):
            table, _, field = FLAT_NAMES[name].partition(".")
            mels = FrontendConfig.for_rate(fields.get("sample_rate", 16000)).n_mels
            nested.setdefault(table, {})[field] = [mels, value] if name == "input_frames" else value
        elif name == "compile" and "encoder" not in fields:  # the default was false; "auto" came later
            nested[name] = value or "auto"
        else:
            nested[name] = value
    return parse_recipe(nested, where, allow_unused=True)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of two recipes; those of ``above`` win, table by table."""
    merged = dict(below)
    if {"steps", "epochs"} & above.keys():  # one replaces the other
        merged = {key: value for key, value in merged.items() if key not in ("steps", "epochs")}
    for name, value in above.items():
        if name in TABLES and isinstance(value, dict) and isinstance(merged.get(name, {}), dict):
            merged[name] = {**merged.get(name, {}), **value}
        elif "." in name or (isinstance(value, dict) and name not in TABLES):
            raise InputError(f"{where}: {unknown_name('table', name, TABLES)}")
        else:
            merged[name] = value
    return merged


def _table(name: str, fields: Mapping[str, Any], where: str) -> Any:
    for field in fields:
        if field not in FIELDS[name]:
            raise InputError(f"{where}: {unknown_name(f'field of [{name}]', field, FIELDS[name])}")
    kind = TABLES[name]
    tuples = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
    try:
        checked = _CHECKED.get(name, kind)(**tuples)
        return kind(**dataclasses.asdict(checked)) if name in _CHECKED else checked
    except ValidationError as error:
        raise InputError(f"{where}: {_sentences(error, kind, f'{name}.')}") from None


def _sentences(error: ValidationError, kind: Any, prefix: str = "") -> str:
    """Return pydantic's errors in one line, with the names and values of the file."""
    described = getattr(kind, "__pydantic_fields__", {})
    sentences = {}
    for entry in error.errors():
        if not entry["loc"]:  # a check of several fields
            sentence = str(entry["ctx"]["error"]) if "ctx" in entry else entry["msg"]
            sentences[""] = sentence if prefix in sentence else f"[{prefix[:-1]}] {sentence}"
            continue
        name = str(entry["loc"][0])
        if entry["type"] == "missing":
            sentences[name] = f"{prefix}{name} is missing"
            continue
        message = entry["msg"].replace("Input should", "must").replace("tuple", "list")
        description = getattr(described.get(name), "description", None)
        value = list(entry["input"]) if isinstance(entry["input"], tuple) else entry["input"]
        hint = f" ({description})" if description else ""
        sentences[name] = f"{prefix}{name} = {value!r}: it {message}{hint}"
    return "; ".join(sentences.values())


def _read_file(name: str | os.PathLike[str], above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Path]:
    """Read the fields of a file and, below them, those of its base."""
    shipped = shipped_recipes()
    path = shipped.get(os.fspath(name)) or (above[-1].parent if above else Path()) / name
    if not path.is_file():
        raise InputError(
            unknown_name("recipe", os.fspath(name), shipped) + " Or give the path of a TOML file."
        )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error
    base = fields.pop("base", None)
    if base is None:
        return fields, path
    if not isinstance(base, str):
        raise InputError(f"{path}: base = {base!r}: it must be a recipe's name, or a path")
    if path.resolve() in above:
        raise InputError(f"{path}: its base leads back to itself")
    below, _ = _read_file(base, (*above, path.resolve()))
    merged = _merge(below, fields, str(path))
    if isinstance(added := fields.get("published", {}), dict) and isinstance(added.get("deviations"), list):
        inherited = below.get("published", {}).get("deviations", [])
        merged["published"]["deviations"] = [*inherited, *added["deviations"]]
    return merged, path
