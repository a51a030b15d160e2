"""A recipe: everything that decides how a network is trained, as one small TOML file with tables."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.utils.errors import InputError, unknown_name

STRICT = ConfigDict(strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW and its learning rate: the table ``[optimizer]``.

    Attributes:
        base_lr: Learning rate at a batch of ``base_batch``; the rate grows in proportion to the batch.
        base_batch: See ``base_lr``.
        min_lr: Learning rate at the end of the cosine.
        warmup: Share of the run in which the rate rises linearly from 0.
        weight_decay: AdamW's, on matrices and tokens.
        beta1: AdamW's.
        beta2: AdamW's.
        clip_grad: Largest global gradient norm; 0 does not clip.
    """

    base_lr: Annotated[float, Field(gt=0)] = 3e-4
    base_batch: Count = 256
    min_lr: NotNegative = 0.0
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="a share of the run, not a number of steps or epochs")
    ] = 0.06666666666666667
    weight_decay: NotNegative = 0.05
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    clip_grad: NotNegative = 3.0


@dataclass(frozen=True, config=STRICT)
class OfflineConfig:
    """M2D-X's second task: the table ``[offline]``.

    Attributes:
        source: Where the offline target comes from: a frozen ``teacher``, the data's ``labels`` (M2D-AS) or
            its ``features`` (M2D-S); empty: there is no second task.
        online_weight: Weight of M2D's own loss.
        offline_weight: Weight of the offline loss.
        features: Classes, or features of a column's target; 0: as many as the teacher or the data has.
        feature_frames: M2D-S: frames of the spectrogram that one stored feature vector stands for.
        teacher: A path or name of the frozen network; empty: that of ``init``.
        teacher_statistics: The teacher hears spectrograms standardized with the ``student`` data's mean and
            standard deviation, as published, or with its ``own``.
    """

    source: Literal["", "teacher", "labels", "features"] = ""
    online_weight: NotNegative = 1.0
    offline_weight: NotNegative = 1.0
    features: Annotated[int, Field(ge=0)] = 0
    feature_frames: Count = 2
    teacher: str = ""
    teacher_statistics: Literal["student", "own"] = "student"


@dataclass(frozen=True, config=STRICT)
class PublishedConfig:
    """What is known of the published run, for readers: the table ``[published]``. It changes no training.

    Attributes:
        reproduces: The name under which the weights were published.
        clips: Clips of the published training set; 0 where none was published.
        hours: Training time as published, with the hardware.
        scores: What the published weights reach, and the source of the numbers.
        deviations: Where this recipe trains otherwise than published.
        ours: Fields whose values were never published, or are not certain.
    """

    reproduces: str = ""
    clips: Annotated[int, Field(ge=0)] = 0
    hours: str = ""
    scores: str = ""
    deviations: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """What a recipe file holds; a field that it omits has the published value of its objective.

    Attributes:
        objective: ``m2d`` or ``msm_mae``.
        description: One sentence for readers.
        encoder: Sizes of the encoder; ``input_size`` is the mel bins and frames of a crop (a frame is 10 ms).
        decoder: Sizes of the predictor (M2D) or decoder (MSM-MAE).
        optimizer: AdamW and its learning rate.
        offline: M2D-X's second task.
        published: What is known of the published run.
        sample_rate: Hertz of the front end.
        mask_ratio: Share of the patches that are masked.
        norm_pix_loss: Standardize each target (token or patch) before comparing.
        loss: M2D: ``cosine`` or ``mse``.
        target_init: M2D: the target starts ``random`` (as published) or as a copy of the ``online`` network.
        target_input: M2D: the target sees the ``masked`` patches, or ``all``.
        momentum_start: M2D: momentum decay at the first step.
        momentum_end: M2D: momentum decay at the last step; linear in between.
        noise_ratio: Share of noise that is mixed into the network's input, in the power domain.
        init: A checkpoint to continue from; empty: fresh weights.
        batch_size: Clips in a step, over all devices.
        steps: Length in optimizer steps; give either ``steps`` or ``epochs``.
        epochs: Length in epochs of ``clips // batch_size`` steps, as many as published: that loader drops the
            last, incomplete batch. Here its clips come first in the next epoch.
        compile: Compile the transformer blocks with torch; ``auto``: on a GPU.
        precision: ``auto`` is bfloat16 where the device computes in it, else float32; ``float64``: for tests.
        seed: Seed of weights, crops, masks and noise.
    """

    objective: Literal["m2d", "msm_mae"]
    description: str = ""
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    offline: OfflineConfig = Field(default_factory=OfflineConfig)
    published: PublishedConfig = Field(default_factory=PublishedConfig)
    sample_rate: Count = 16000
    mask_ratio: Annotated[float, Field(gt=0, lt=1, description="a share of the patches")] = 0.7
    norm_pix_loss: bool = True
    loss: Literal["cosine", "mse"] = "cosine"
    target_init: Literal["random", "online"] = "random"
    target_input: Literal["masked", "all"] = "masked"
    momentum_start: Momentum = 0.99995
    momentum_end: Momentum = 0.99999
    noise_ratio: Annotated[float, Field(ge=0, lt=1, description="a share of the mixture")] = 0.0
    init: str = ""
    batch_size: Count = 2048
    steps: Annotated[int, Field(ge=0)] | None = None
    epochs: Count | None = None
    compile: bool | Literal["auto"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            number = "neither" if self.steps is None else "both"
            raise InputError(f"a recipe must have either steps or epochs; this one has {number}")
        if self.offline.teacher and self.offline.source != "teacher":
            raise InputError(
                f'offline.teacher = {self.offline.teacher!r} is only used where offline.source = "teacher"'
            )
        frames = self.encoder.patch_size[1]
        if self.offline.source == "features" and frames % self.offline.feature_frames:
            raise InputError(
                f"offline.feature_frames = {self.offline.feature_frames} must divide a column's {frames} "
                f"frames"
            )
        if self.encoder.input_size[0] != self.frontend.n_mels:
            raise InputError(
                f"encoder.input_size = {list(self.encoder.input_size)} must begin with the front end's "
                f"{self.frontend.n_mels} mel bins"
            )
        patches = math.prod(self.encoder.grid)
        if not 0 < visible_count(patches, self.mask_ratio) < patches:
            raise InputError(
                f"mask_ratio = {self.mask_ratio} of {patches} patches leaves none visible or masked"
            )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate at this batch size."""
        return self.optimizer.base_lr * self.batch_size / self.optimizer.base_batch

    @property
    def frontend(self) -> FrontendConfig:
        """The log-mel."""
        return FrontendConfig.for_rate(self.sample_rate)

    @property
    def frames(self) -> int:
        """Frames of a crop."""
        return self.encoder.input_size[1]

    def to_json(self) -> dict[str, Any]:
        """Return what decides how a network is trained, and the description: the record of a run."""
        fields = dataclasses.asdict(self)
        del fields["published"]
        for name in ("input_size", "patch_size"):
            fields["encoder"][name] = list(fields["encoder"][name])
        return fields


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
# The published MSM-MAE differs from M2D, whose numbers are the defaults of the fields.
MSM_MAE_DEFAULTS: dict[str, Any] = {
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "decoder": {"width": 384, "depth": 4, "heads": 6},
}
M2D_ONLY = ("loss", "target_init", "target_input", "momentum_start", "momentum_end", "offline")
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
        ValueError: There is no such recipe (the nearest names are shown), the file is not TOML, or a field
            is unknown or out of range.
    """
    fields, path = _read_file(name)
    for key, value in (overrides or {}).items():
        table, _, field = key.rpartition(".")
        fields = _merge(fields, {table: {field: value}} if table else {field: value}, str(path))
    return parse_recipe(fields, str(path))


def replace_fields(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values, by ``field`` or ``table.field``.

    Raises:
        ValueError: A value is out of range.
    """
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, _, field = key.rpartition(".")
        tables.setdefault(table, {})[field] = value
    nested = {
        name: dataclasses.replace(getattr(recipe, name), **fields) for name, fields in tables.items() if name
    }
    return dataclasses.replace(recipe, **tables.get("", {}), **nested)


def parse_recipe(fields: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from nested tables, as a TOML file holds them.

    Args:
        fields: Values by name; tables are dictionaries.
        where: The file, for messages.

    Raises:
        ValueError: A field is unknown (the nearest name is shown), missing or out of range.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name, value in fields.items():
        if name in FLAT_NAMES and not (name in TABLES and isinstance(value, dict)):
            raise InputError(f"{where}: {_moved(name, value)}")
        if name not in known:
            raise InputError(f"{where}: {unknown_name('recipe field', name, known)}")
        if name in TABLES and not isinstance(value, dict):
            raise InputError(f"{where}: {name} must be a table: write [{name}], and its fields below it")
    if fields.get("objective") == "msm_mae":
        if unused := [name for name in M2D_ONLY if name in fields]:
            raise InputError(f"{where}: {unused[0]} is only used by M2D, and this recipe trains MSM-MAE")
        fields = _merge(MSM_MAE_DEFAULTS, fields, where)
    built = {name: _table(name, value, where) for name, value in fields.items() if name in TABLES}
    try:
        return Recipe(**{**_tuples(fields), **built})
    except ValidationError as error:
        raise InputError(f"{where}: {_sentences(error, Recipe)}") from None


def recipe_of_record(fields: Mapping[str, Any], where: str) -> Recipe:
    """Read the ``recipe`` of a run's record, also of a run that version 0.1 began.

    Missing fields have their defaults: those of a field that the run's version did not have yet.

    Raises:
        ValueError: The record has a field that this version does not know, or a value out of range.
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
    if nested.get("objective") == "msm_mae":
        nested = {name: value for name, value in nested.items() if name not in M2D_ONLY}
    return parse_recipe(nested, where)


def _moved(name: str, value: Any) -> str:
    """Say where a field of version 0.1 is now."""
    table, _, field = FLAT_NAMES[name].partition(".")
    shown = [80, value] if name == "input_frames" else value
    if field == "source":
        shown = value or ""
    return (
        f"{name} is now in a table, since version 0.2: write [{table}], and below it {field} = {_toml(shown)}"
    )


def _toml(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text.lower() if isinstance(value, bool) else text


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
    try:
        checked = _CHECKED.get(name, kind)(**_tuples(fields))
        return kind(**dataclasses.asdict(checked)) if name in _CHECKED else checked
    except ValidationError as error:
        raise InputError(f"{where}: {_sentences(error, kind, f'{name}.')}") from None


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


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
        message = entry["msg"].replace("Input should", "must").replace("tuple", "list")
        if entry["type"] == "missing":
            sentences[name] = f"{prefix}{name} is missing"
            continue
        note = getattr(described.get(name), "description", None)
        value = list(entry["input"]) if isinstance(entry["input"], tuple) else entry["input"]
        sentences[name] = f"{prefix}{name} = {value!r}: it {message}{f' ({note})' if note else ''}"
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
