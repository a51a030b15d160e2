"""The fields of a recipe: everything that decides how a network is trained, checked when it is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.utils.errors import InputError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW and its learning rate: the table ``[optimizer]``."""

    base_lr: Annotated[float, Field(gt=0)] = 3e-4  # at base_batch clips; grows in proportion to the batch
    base_batch: Count = 256
    min_lr: NotNegative = 0.0  # at the end of the cosine
    # Share of the run in which the rate rises linearly from 0.
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="a share of the run, not a number of steps or epochs")
    ] = 0.06666666666666667
    weight_decay: NotNegative = 0.05  # of matrices and tokens
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    clip_grad: NotNegative = 3.0  # largest global gradient norm; 0 does not clip


@dataclass(frozen=True, config=STRICT)
class OfflineConfig:
    """M2D-X's second task: the table ``[offline]``."""

    # Where the offline target comes from: a frozen teacher, the data's labels (M2D-AS) or its features
    # (M2D-S); empty: there is no second task.
    source: Literal["", "teacher", "labels", "features"] = ""
    online_weight: NotNegative = 1.0  # of M2D's own loss
    offline_weight: NotNegative = 1.0  # of the offline loss
    # Classes, or features of a column's target; 0: as many as the teacher or the data has.
    features: Annotated[int, Field(ge=0)] = 0
    feature_frames: Count = 2  # M2D-S: frames of the spectrogram that one stored feature vector stands for
    teacher: str = ""  # a path or name of the frozen network; empty: that of `init`
    # The teacher's input is standardized with the student's data, as published, or with its own.
    teacher_statistics: Literal["student", "own"] = "student"


@dataclass(frozen=True, config=STRICT)
class PublishedConfig:
    """Facts about the published run, for readers: the table ``[published]``. It changes no training."""

    reproduces: str = ""  # the name under which the weights were published
    clips: Annotated[int, Field(ge=0)] = 0  # of the published training set; 0: not published
    hours: str = ""  # training time as published, with the hardware
    scores: str = ""  # what the published weights reach, and the source of the numbers
    deviations: tuple[str, ...] = ()  # where this recipe trains otherwise than published
    ours: tuple[str, ...] = ()  # fields whose values were never published, or are not certain


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """The content of a recipe file; an omitted field has the published value of its objective."""

    objective: Literal["m2d", "msm_mae"]
    description: str = ""  # one sentence for readers
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)  # input_size: mel bins and frames of a crop
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)  # predictor (M2D) or decoder (MSM-MAE)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    offline: OfflineConfig = Field(default_factory=OfflineConfig)
    published: PublishedConfig = Field(default_factory=PublishedConfig)
    sample_rate: Count = 16000  # hertz; a frame is 10 ms
    mask_ratio: Annotated[float, Field(gt=0, lt=1, description="a share of the patches")] = 0.7
    norm_pix_loss: bool = True  # standardize each target (token or patch) before comparing
    loss: Literal["cosine", "mse"] = "cosine"  # of M2D
    # M2D's target starts at random (as published), or as a copy of the online network.
    target_init: Literal["random", "online"] = "random"
    target_input: Literal["masked", "all"] = "masked"  # the patches that M2D's target sees
    # Standardize each feature of M2D's target over all masked tokens of the step (not in the paper).
    batch_norm_target: bool = False
    momentum_start: Momentum = 0.99995  # M2D: momentum decay at the first step
    momentum_end: Momentum = 0.99999  # M2D: momentum decay at the last step; linear in between
    # Share of noise that is mixed into the network's input, in the power domain.
    noise_ratio: Annotated[float, Field(ge=0, lt=1, description="a share of the mixture")] = 0.0
    init: str = ""  # a checkpoint to continue from; empty: fresh weights
    batch_size: Count = 2048  # clips in a step, over all devices
    steps: Annotated[int, Field(ge=0)] | None = None  # of the optimizer; give either steps or epochs
    # Epochs of clips // batch_size steps, as many as published: that loader drops the last, incomplete batch.
    # Here its clips come first in the next epoch.
    epochs: Count | None = None
    compile: bool | Literal["auto"] = "auto"  # compile the transformer blocks with torch; auto: on a GPU
    # auto: bfloat16 where the device computes in it, else float32; float64 is for tests.
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of weights, crops, masks and noise

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


def replace_fields(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values, by ``field`` or ``table.field``; they are checked again."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, _, field = key.rpartition(".")
        tables.setdefault(table, {})[field] = value
    nested = {
        name: dataclasses.replace(getattr(recipe, name), **fields) for name, fields in tables.items() if name
    }
    return dataclasses.replace(recipe, **tables.get("", {}), **nested)
