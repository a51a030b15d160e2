"""A recipe: everything that decides how a network is trained, as one small TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.utils.errors import InputError, unknown_name

CHOICES = {
    "objective": ("m2d", "msm_mae"),
    "decoder_pos": ("2d", "1d"),
    "loss": ("cosine", "mse"),
    "target_init": ("random", "online"),
    "target_input": ("masked", "all"),
    "offline": ("", "teacher", "labels", "features"),
    "teacher_statistics": ("student", "own"),
    "precision": ("auto", "float32", "bfloat16", "float64"),
}
# Where the published MSM-MAE differs from M2D, whose numbers are the fields' defaults.
MSM_MAE_DEFAULTS = {
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "decoder_width": 384,
    "decoder_depth": 4,
    "decoder_heads": 6,
}
KINDS = {
    "int": "it is a whole number",
    "float": "it is a number",
    "str": "it is a text",
    "bool": "it is true or false",
    "patch_size": "it is two whole numbers, [mel bins, frames]",
    "tuple": "it is a list of texts",
}
OFFLINE = (
    "online_weight",
    "offline_weight",
    "offline",
    "teacher",
    "teacher_statistics",
    "offline_features",
    "feature_frames",
)
M2D_ONLY = ("loss", "target_init", "target_input", "momentum_start", "momentum_end", *OFFLINE)
# For people: nothing is trained differently by them.
PAGE = (
    "description",
    "reproduces",
    "published_clips",
    "published_hours",
    "published_scores",
    "deviations",
    "ours",
)


@dataclass(frozen=True)
class Recipe:
    """One field per line of the file; a file that leaves one out gets the published value of its objective.

    Attributes:
        objective: ``m2d`` or ``msm_mae``.
        description: One sentence for people.
        width: Features of an encoder token.
        depth: Encoder blocks.
        heads: Attention heads of the encoder.
        class_token: Whether the encoder has a class token.
        sample_rate: Hertz of the front end.
        input_frames: Frames of a crop; one frame is 10 ms.
        patch_size: Mel bins and frames of a patch.
        mask_ratio: Share of the patches that are masked.
        norm_pix_loss: Standardise each target (token or patch) before comparing.
        decoder_width: Features of a token of the predictor (M2D) or decoder (MSM-MAE).
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.
        decoder_pos: Its positions: ``2d``, or ``1d`` as in the first MSM-MAE.
        loss: M2D: ``cosine`` or ``mse``.
        target_init: M2D: the target starts ``random`` (as published) or as a copy of the ``online`` network.
        target_input: M2D: the target sees the ``masked`` patches, or ``all``.
        momentum_start: M2D: momentum decay at the first step.
        momentum_end: M2D: momentum decay at the last step; linear in between.
        offline: M2D: what else the network learns from (M2D-X): a frozen ``teacher``, the data's ``labels``
            (M2D-AS) or its ``features`` (M2D-S); empty: nothing.
        online_weight: M2D-X: of M2D's own loss.
        offline_weight: M2D-X: of the offline loss.
        offline_features: M2D-X: classes, or features of a column's target; 0: as many as there are.
        feature_frames: M2D-S: frames of the spectrogram that one stored feature vector stands for.
        teacher: M2D-X: a path or name of the frozen network; empty: that of ``init``.
        teacher_statistics: M2D-X: the teacher hears spectrograms standardised with the ``student`` data's
            mean and standard deviation, as published, or with its ``own``.
        noise_ratio: Share of noise that is mixed into what the network hears, in the power domain.
        init: A checkpoint to continue from; empty: fresh weights.
        batch_size: Clips per step, over all devices.
        base_lr: Learning rate at a batch of ``base_batch``; the rate grows in proportion to the batch.
        base_batch: See ``base_lr``.
        min_lr: Learning rate at the end of the cosine.
        warmup: Share of the run that warms up linearly from 0.
        steps: Length in optimiser steps; exactly one of ``steps`` and ``epochs`` is given.
        epochs: Length in epochs of ``clips // batch_size`` steps: as many as published, whose loader drops
            the last, incomplete batch. Here the clips of it come first in the next epoch.
        weight_decay: AdamW's, on matrices and tokens.
        beta1: AdamW's.
        beta2: AdamW's.
        clip_grad: Largest global gradient norm; 0 does not clip.
        compile: Have torch compile the networks.
        precision: ``auto`` is bfloat16 where the device computes in it, else float32; ``float64``: for tests.
        seed: Of weights, crops, masks and noise.
        reproduces: What it was published as.
        published_clips: Clips of the set that it was published with; 0 where none was.
        published_hours: Training time as published, with the hardware.
        published_scores: What the published weights reach, and where that stands.
        deviations: Where it trains otherwise than published.
        ours: Fields whose values were never published, or are not certain.
    """

    objective: str
    description: str = ""
    width: int = 768
    depth: int = 12
    heads: int = 12
    class_token: bool = True
    sample_rate: int = 16000
    input_frames: int = 608
    patch_size: tuple[int, int] = (16, 16)
    mask_ratio: float = 0.7
    norm_pix_loss: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_pos: str = "2d"
    loss: str = "cosine"
    target_init: str = "random"
    target_input: str = "masked"
    momentum_start: float = 0.99995
    momentum_end: float = 0.99999
    offline: str = ""
    online_weight: float = 1.0
    offline_weight: float = 1.0
    offline_features: int = 0
    feature_frames: int = 2
    teacher: str = ""
    teacher_statistics: str = "student"
    noise_ratio: float = 0.0
    init: str = ""
    batch_size: int = 2048
    base_lr: float = 3e-4
    base_batch: int = 256
    min_lr: float = 0.0
    warmup: float = 0.06666666666666667
    steps: int | None = None
    epochs: int | None = None
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip_grad: float = 3.0
    compile: bool = False
    precision: str = "auto"
    seed: int = 0
    reproduces: str = ""
    published_clips: int = 0
    published_hours: str = ""
    published_scores: str = ""
    deviations: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("patch_size", "deviations", "ours"):
            if not isinstance(getattr(self, name), list | tuple):
                raise InputError(f"{name} = {getattr(self, name)!r}; {KINDS.get(name, KINDS['tuple'])}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                told = ", ".join(one or '""' for one in allowed)
                raise InputError(f"{name} = {getattr(self, name)!r}; it is one of {told}")
        self._check_types()
        if (self.steps is None) == (self.epochs is None):
            raise InputError(
                "a recipe has either steps or epochs; this one has "
                f"{'neither' if self.steps is None else 'both'}"
            )
        for name, (fits, wanted) in self._ranges().items():
            if not fits:
                raise InputError(f"{name} = {getattr(self, name)!r} is out of range: it is {wanted}")
        if self.teacher and self.offline != "teacher":
            raise InputError(f'teacher = {self.teacher!r} teaches only where offline = "teacher"')
        if self.offline == "features" and self.patch_size[1] % self.feature_frames:
            raise InputError(
                f"feature_frames = {self.feature_frames} does not divide the {self.patch_size[1]} of a column"
            )
        patches = math.prod(self.encoder_config.grid)
        if not 0 < visible_count(patches, self.mask_ratio) < patches:
            raise InputError(
                f"mask_ratio = {self.mask_ratio} of {patches} patches leaves none visible or masked"
            )

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        """Return whether each number is in its range, and that range in words."""
        sizes = "batch_size", "base_batch", "feature_frames", "decoder_depth", "decoder_heads"
        rates = "min_lr", "clip_grad", "weight_decay", "online_weight", "offline_weight"
        counts = "offline_features", "published_clips"
        return {
            **{name: (getattr(self, name) > 0, "1 or more") for name in sizes},
            **{name: (getattr(self, name) >= 0, "0 or more") for name in (*rates, *counts)},
            "base_lr": (self.base_lr > 0, "more than 0"),
            "steps": (self.steps is None or self.steps >= 0, "0 or more"),
            "epochs": (self.epochs is None or self.epochs > 0, "1 or more"),
            "mask_ratio": (0 < self.mask_ratio < 1, "a share of the patches, between 0 and 1"),
            "noise_ratio": (0 <= self.noise_ratio < 1, "a share of the mixture, from 0 to less than 1"),
            "warmup": (
                0 <= self.warmup < 1,
                "a share of the run, from 0 to less than 1, not steps or epochs",
            ),
            "momentum_start": (0 <= self.momentum_start <= 1, "from 0 to 1"),
            "momentum_end": (0 <= self.momentum_end <= 1, "from 0 to 1"),
            "beta1": (0 <= self.beta1 < 1, "from 0 to less than 1"),
            "beta2": (0 <= self.beta2 < 1, "from 0 to less than 1"),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            "decoder_width": (
                self.decoder_width > 0
                and self.decoder_width % 4 == 0
                and self.decoder_width % max(self.decoder_heads, 1) == 0,
                f"a multiple of 4 and of decoder_heads, {self.decoder_heads}",
            ),
        }

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), re.split(r"\W", str(field.type))[0]
            if field.name == "patch_size":
                fits = len(value) == 2 and all(type(n) is int for n in value)
                kind = "patch_size"
            elif kind == "tuple":
                fits = all(type(text) is str for text in value)
            else:
                allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}[kind]
                fits = (value is None and "None" in str(field.type)) or type(value) in allowed
                fits = fits and not (type(value) is float and not math.isfinite(value))
            if not fits:
                raise InputError(f"{field.name} = {value!r}; {KINDS[kind]}")

    @property
    def learning_rate(self) -> float:
        """Peak learning rate at this batch size."""
        return self.base_lr * self.batch_size / self.base_batch

    @property
    def encoder_config(self) -> EncoderConfig:
        """Sizes of the encoder."""
        return EncoderConfig(
            input_size=(self.frontend_config.n_mels, self.input_frames),
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            class_token=self.class_token,
        )

    @property
    def decoder_config(self) -> DecoderConfig:
        """Sizes of the predictor or decoder."""
        return DecoderConfig(
            width=self.decoder_width,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            positions=self.decoder_pos,
        )

    @property
    def frontend_config(self) -> FrontendConfig:
        """The log-mel."""
        return FrontendConfig.for_rate(self.sample_rate)

    def to_json(self) -> dict[str, Any]:
        """Return what decides how a network is trained, and the description: for a record of the run."""
        fields = {**dataclasses.asdict(self), "patch_size": list(self.patch_size)}
        return {name: value for name, value in fields.items() if name not in PAGE[1:]}


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(resources.files("hear_m2d.pretrain") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def parse_recipe(fields: dict[str, Any], where: str) -> Recipe:
    """Check a recipe's fields.

    Args:
        fields: Names and values.
        where: The file, for messages.

    Raises:
        ValueError: An unknown field (the nearest is named), a missing one, or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in fields:
        if name not in known:
            raise InputError(f"{where}: {unknown_name('recipe field', name, known)}")
    if "objective" not in fields:
        raise InputError(f"{where}: objective is missing; it is one of {', '.join(CHOICES['objective'])}")
    if fields["objective"] == "msm_mae":
        if unused := [name for name in M2D_ONLY if name in fields]:
            raise InputError(f"{where}: {unused[0]} is a field of M2D, and this recipe trains MSM-MAE")
        fields = {**MSM_MAE_DEFAULTS, **fields}
    try:
        return Recipe(**fields)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a TOML file.

    A file with ``base = "m2d_base"`` names only what differs from that recipe (shipped, or a path beside the
    file); its ``deviations`` are added to the base's.

    Raises:
        ValueError: No such recipe (the nearest names are shown), not TOML, or a field that does not fit.
    """
    fields, path = _read_fields(name)
    return parse_recipe(fields, str(path))


def _read_fields(name: str | os.PathLike[str], above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Path]:
    """Read a file's fields upon those of its base."""
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
        raise InputError(f"{path}: base = {base!r}; it is a recipe's name, or a path")
    if path.resolve() in above:
        raise InputError(f"{path}: its base leads back to itself")
    below, _ = _read_fields(base, (*above, path.resolve()))
    if isinstance(added := fields.get("deviations"), list):
        fields["deviations"] = [*below.get("deviations", []), *added]
    if {"steps", "epochs"} & fields.keys():  # one replaces the other
        below = {key: value for key, value in below.items() if key not in ("steps", "epochs")}
    return {**below, **fields}, path
