"""The config of a checkpoint (ModelConfig), and the options of a caller (Options)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.model.heads import ProjectorConfig
from hear_m2d.utils.errors import InputError, unknown_name

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
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.training, Mapping):
            raise InputError("kind, code_base, licence and labels are texts, and training an object")
        if self.code_base not in CODE_BASES:
            raise InputError(f"code_base is {self.code_base!r}; it is one of {', '.join(CODE_BASES)}")
        for name, value in {"mean": self.mean, "std": self.std}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
                raise InputError(f"{name} is {value!r}; it is a number that a log-mel can have")
        if not self.std > 0:
            raise InputError(f"std is {self.std}; it is positive")
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
            ValueError: Another format, or an unknown, missing or malformed field.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"checkpoint format {data.get('format')!r}; this version reads format {FORMAT}")
        rest = {key: value for key, value in data.items() if key not in ("format", "sha256")}
        if lacking := [name for name in ("encoder", "frontend", "mean", "std") if name not in rest]:
            raise InputError(f"the checkpoint's config lacks {', '.join(lacking)}")
        try:
            encoder = dict(rest.pop("encoder"))
            labels = rest.pop("labels", ())
            if not isinstance(labels, list | tuple):
                raise InputError(f"labels is {labels!r}; it is a list of names")
            for name in {"input_size", "patch_size"} & set(encoder):
                encoder[name] = tuple(encoder[name])
            projector = rest.pop("projector", None)
            return ModelConfig(
                encoder=_fields(EncoderConfig, encoder),
                frontend=_fields(FrontendConfig, dict(rest.pop("frontend"))),
                projector=None if projector is None else _fields(ProjectorConfig, dict(projector)),
                labels=tuple(labels),
                **_known(ModelConfig, rest),
            )
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
            raise InputError(f"the checkpoint's config is malformed: {error!r}") from error


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise InputError(unknown_name(f"{kind.__name__} field", key, names))
    return values


def _fields(kind: type, values: dict[str, Any]) -> Any:
    """Build a nested config; missing fields are errors, never defaults."""
    lacking = [f.name for f in dataclasses.fields(kind) if f.name not in _known(kind, values)]
    if lacking:
        raise InputError(f"the checkpoint's {kind.__name__} lacks {', '.join(lacking)}")
    return kind(**values)


@dataclass(frozen=True)
class Options:
    """Options of ``load_model``. The first four replace the file's values.

    Attributes:
        sample_rate: Hertz, where the file does not say (published files say it in their name only).
        input_frames: Frames of one window, where that is not a multiple of the patch.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        windows: ``whole``: no frame is lost between windows; ``published``: as the authors' code of the
            checkpoint's code base cuts them.
        normalization: ``fixed``: the checkpoint's statistics; ``batch``: those of the current batch, as in
            the first MSM-MAE, so that a clip's embedding depends on the other clips.
        dur_frames: Resample (longer) or crop (shorter) the stored positions to one window of this length.
        timestamps: ``interpolate`` columns in time, or ``dense``: one shifted pass per timestamp phase.
        layers: Block indices to embed with, from 0, negative ones allowed; None is the last block.
        layer_mode: ``concat`` the layers' features, or take their ``mean``.
        output: ``columns``: frequency rows stacked, as the papers embed; ``mean``: their mean;
            ``tokens``: the single tokens (their mean where one vector per time is asked for).
        dtype: ``float32`` or ``bfloat16``, of the encoder; front end and outputs stay float32.
        compile: Have torch compile the encoder's blocks on their first use, once for all lengths.
    """

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
        choices = {
            "windows": ("whole", "published"),
            "normalization": ("fixed", "batch"),
            "timestamps": ("interpolate", "dense"),
            "layer_mode": ("concat", "mean"),
            "output": ("columns", "tokens", "mean"),
            "dtype": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name}={value!r}; it is one of {', '.join(allowed)}")
        if self.normalization == "batch" and (self.mean is not None or self.std is not None):
            raise InputError("normalization='batch' takes the batch's statistics: leave mean and std out")
        if self.windows == "published" and self.timestamps == "dense":
            raise InputError("timestamps='dense' needs windows='whole': its passes lose no frame")
        for name in ("sample_rate", "input_frames", "dur_frames"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
                raise InputError(f"{name}={value!r}; it must be a positive integer")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{name}={value!r}; it is a number")
        if not isinstance(self.compile, bool):
            raise InputError(f"compile={self.compile!r}; it is True or False")
        if self.layers is not None:
            if not isinstance(self.layers, list | tuple):
                raise InputError(f"layers={self.layers!r}; it is a list of block indices, or None")
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers or not all(type(i) is int for i in self.layers):
                raise InputError(f"layers={self.layers!r}; it is a list of block indices, or None")

    @staticmethod
    def parse(options: Mapping[str, Any]) -> Options:
        """Check keyword options.

        Raises:
            ValueError: An unknown name (the nearest is shown) or a value out of range.
        """
        names = [f.name for f in dataclasses.fields(Options)]
        for key in options:
            if key not in names:
                raise InputError(unknown_name("option", key, names))
        return Options(**options)

    def override(self, config: ModelConfig) -> ModelConfig:
        """Return the config with the given values in place of the file's.

        Raises:
            ValueError: A value that no front end, or not this encoder, can have.
        """
        encoder, frontend = config.encoder, config.frontend
        if self.dur_frames is not None and self.input_frames is not None:
            raise InputError("give dur_frames or input_frames: both are the length of a window")
        if self.sample_rate is not None and self.sample_rate != frontend.sample_rate:
            try:
                frontend = frontend.at_rate(self.sample_rate)
            except ValueError as error:
                raise InputError(
                    f"sample_rate={self.sample_rate}; a model's rate is 16000 or 32000 as a rule: {error}"
                ) from error
        if self.input_frames is not None:
            patch = encoder.patch_size[1]
            if self.input_frames // patch != encoder.grid[1]:
                raise InputError(
                    f"input_frames={self.input_frames}; the checkpoint's positions are for "
                    f"{encoder.grid[1] * patch} to {encoder.grid[1] * patch + patch - 1} frames"
                )
            encoder = dataclasses.replace(encoder, input_size=(encoder.input_size[0], self.input_frames))
        return dataclasses.replace(
            config,
            encoder=encoder,
            frontend=frontend,
            mean=config.mean if self.mean is None else float(self.mean),
            std=config.std if self.std is None else float(self.std),
        )
