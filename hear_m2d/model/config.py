"""The config of a checkpoint (ModelConfig), and the options of a caller (Options)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.model.heads import ProjectorConfig
from hear_m2d.utils.errors import InputError, check_integers, unknown_name

FORMAT = 1
CODE_BASES = ("m2d", "msm_mae")
# Statistics of AudioSet at 16 kHz: they hold for every published file that stores none.
DEFAULT_MEAN, DEFAULT_STD = -7.1, 4.2
LARGEST = 1e6  # limit of a mean or standard deviation; a log-mel lies between -16 and about 15


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights; the JSON in a checkpoint's metadata.

    Attributes:
        kind: ``m2d``, ``m2d_as``, ``m2d_s``, ``m2d_x``, ``m2d_clap``, ``msm_mae``, …
        encoder: Sizes of the encoder.
        frontend: Every number of the log-mel.
        mean: Mean of the training log-mels; an input is standardized as (x - mean) / std.
        std: Their standard deviation.
        labels: Class names, if the checkpoint classifies.
        head_width: Features that the classifier reads: the encoder's width (mean over tokens) or that of
            a column; None without a classifier.
        projector: Sizes of M2D-CLAP's audio projector, if there is one.
        code_base: Whose published windows ``windows="published"`` means: ``m2d`` or ``msm_mae``.
        licence: Terms of the weights.
        training: How they were trained: recipe, data summary, steps, seed, version.
    """

    kind: str = "m2d"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    mean: float = DEFAULT_MEAN
    std: float = DEFAULT_STD
    labels: tuple[str, ...] = ()
    head_width: int | None = None
    projector: ProjectorConfig | None = None
    code_base: str = "m2d"
    licence: str = "unknown"
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = (self.kind, self.code_base, self.licence, *self.labels)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.labels, tuple):
            raise InputError("kind, code_base and licence must be texts, and labels a list of texts")
        if not isinstance(self.training, Mapping):
            raise InputError(f"training must be an object, got {self.training!r}")
        if self.code_base not in CODE_BASES:
            raise InputError(f"code_base must be one of {', '.join(CODE_BASES)}, got {self.code_base!r}")
        _check_numbers(mean=self.mean, std=self.std)
        if not self.std > 0:
            raise InputError(f"std must be positive, got {self.std}")
        if self.encoder.input_size[0] != self.frontend.n_mels:
            raise InputError(
                f"the encoder reads {self.encoder.input_size[0]} mel bins, the front end gives "
                f"{self.frontend.n_mels}"
            )
        widths = (self.encoder.width, self.encoder.column_width)
        if self.head_width is not None and (self.head_width not in widths or not self.labels):
            raise InputError(f"a classifier needs labels and a width of {widths}, not {self.head_width}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the metadata."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelConfig:
        """Read the JSON object of the metadata.

        Raises:
            InputError: Another format, or an unknown, missing or malformed field.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"checkpoint format {data.get('format')!r}; this version reads format {FORMAT}")
        values = {key: value for key, value in data.items() if key not in ("format", "sha256")}
        parts: dict[str, type] = {
            "encoder": EncoderConfig,
            "frontend": FrontendConfig,
            "projector": ProjectorConfig,
        }
        try:
            for name, kind in parts.items():
                if values.get(name) is not None:
                    values[name] = _build(kind, values[name], [f.name for f in dataclasses.fields(kind)])
            config: ModelConfig = _build(ModelConfig, values, ("encoder", "frontend", "mean", "std"))
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
            raise InputError(f"the checkpoint's config is malformed: {error!r}") from error
        return config


def _build(kind: type, values: Mapping[str, Any], required: Sequence[str]) -> Any:
    """Build a part of the config; missing numbers are errors, never defaults."""
    names = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise InputError(unknown_name(f"{kind.__name__} field", key, names))
    if missing := [name for name in required if name not in values]:
        raise InputError(f"the checkpoint's {kind.__name__} lacks {', '.join(missing)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check_numbers(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
            raise InputError(f"{name} must be a number that a log-mel can have, got {value!r}")


CHOICES: dict[str, tuple[Any, ...]] = {
    "windows": ("whole", "published"),
    "normalization": ("fixed", "batch"),
    "timestamps": ("interpolate", "dense"),
    "layer_mode": ("concat", "mean"),
    "output": ("columns", "tokens", "mean"),
    "dtype": ("float32", "bfloat16"),
    "compile": (True, False),
}


@dataclass(frozen=True)
class Options:
    """Options of :func:`hear_m2d.load_model`, which describes them."""

    sample_rate: int | None = None
    input_frames: int | None = None
    mean: float | None = None
    std: float | None = None
    dur_frames: int | None = None
    windows: str = "whole"
    normalization: str = "fixed"
    timestamps: str = "interpolate"
    layers: tuple[int, ...] | None = None
    layer_mode: str = "concat"
    output: str = "columns"
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        if self.normalization == "batch" and (self.mean is not None or self.std is not None):
            raise InputError("normalization='batch' takes the batch's statistics: leave mean and std out")
        if self.windows == "published" and self.timestamps == "dense":
            raise InputError("timestamps='dense' needs windows='whole': its passes lose no frame")
        given = {name: value for name, value in vars(self).items() if value is not None}
        sizes = ("sample_rate", "input_frames", "dur_frames")
        check_integers(minimum=1, **{name: given[name] for name in sizes if name in given})
        _check_numbers(**{name: given[name] for name in ("mean", "std") if name in given})
        if self.layers is not None:
            indices = self.layers if isinstance(self.layers, list | tuple) else ()
            if not indices or not all(type(i) is int for i in indices):
                raise InputError(f"layers must be a list of block indices, or None, got {self.layers!r}")
            object.__setattr__(self, "layers", tuple(self.layers))

    @staticmethod
    def parse(options: Mapping[str, Any]) -> Options:
        """Check keyword options.

        Raises:
            InputError: An unknown name (the nearest is shown) or a value out of range.
        """
        names = [f.name for f in dataclasses.fields(Options)]
        for key in options:
            if key not in names:
                raise InputError(unknown_name("option", key, names))
        return Options(**options)

    def override(self, config: ModelConfig) -> ModelConfig:
        """Return the config with the given values in place of the file's.

        Raises:
            InputError: A value that no front end, or not this encoder, can have.
        """
        encoder, frontend = config.encoder, config.frontend
        if self.dur_frames is not None and self.input_frames is not None:
            raise InputError("give dur_frames or input_frames: both are the length of a window")
        if self.sample_rate is not None and self.sample_rate != frontend.sample_rate:
            try:
                frontend = frontend.at_rate(self.sample_rate)
            except InputError as error:
                raise InputError(
                    f"sample_rate={self.sample_rate}; a model's rate is 16000 or 32000 as a rule: {error}"
                ) from error
        if self.input_frames is not None:
            patch = encoder.patch_size[1]
            if self.input_frames // patch != encoder.grid[1]:
                least = encoder.grid[1] * patch
                raise InputError(
                    f"input_frames must be {least} to {least + patch - 1}, the length of the positions"
                )
            encoder = dataclasses.replace(encoder, input_size=(encoder.input_size[0], self.input_frames))
        return dataclasses.replace(
            config,
            encoder=encoder,
            frontend=frontend,
            mean=config.mean if self.mean is None else float(self.mean),
            std=config.std if self.std is None else float(self.std),
        )
