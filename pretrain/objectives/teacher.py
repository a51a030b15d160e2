"""The frozen teacher of M2D-X, and checks before training that it fits the recipe.

Source: M2D-X (see ``m2d_x.py``), whose published code hands the teacher the student's spectrograms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hear_m2d.checkpoint.build import build_model
from hear_m2d.checkpoint.format import Checkpoint
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.recipe import Recipe, replace_fields
from hear_m2d.utils.errors import InputError


def to_columns(tokens: Tensor, rows: int) -> Tensor:
    """Stack the frequency rows: (batch, rows * n, width), frequency-major → (batch, n, rows * width)."""
    batch, patches, width = tokens.shape
    return tokens.reshape(batch, rows, patches // rows, width).transpose(1, 2).flatten(2)


class Teacher:
    """A frozen encoder: clean spectrograms → columns, window by window.

    It is not an ``nn.Module``, so that an objective does not train, save or synchronize it. ``mean`` and
    ``std`` are those of the student's data. Its input is standardized with these (``student``, as published),
    or with its ``own`` mean and deviation.
    """

    def __init__(self, model: HearModel, *, mean: float, std: float, statistics: str = "student") -> None:
        self.encoder = model.encoder.eval().requires_grad_(False)
        self.scale, self.shift = 1.0, 0.0
        if statistics == "own":
            self.scale = std / model.config.std
            self.shift = (mean - model.config.mean) / model.config.std

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Return itself: it never changes, so that copies of an objective can share it."""
        return self

    @property
    def features(self) -> int:
        """Features of a column."""
        return self.encoder.config.column_width

    @torch.no_grad()
    def columns(self, clean: Tensor) -> Tensor:
        """Return the columns of a batch, (batch, columns, rows * width).

        Args:
            clean: Spectrograms standardized with the student's statistics, (batch, 1, mels, frames).
        """
        self.encoder.to(clean.device)
        config = self.encoder.config
        x = clean.to(self.encoder.norm.weight.dtype) * self.scale + self.shift
        parts = []
        for window in torch.split(x, config.grid[1] * config.patch_size[1], dim=-1):
            short = -window.shape[-1] % config.patch_size[1]
            tokens = self.encoder(nn.functional.pad(window, (0, short)))
            parts.append(to_columns(tokens, rows=config.grid[0]))
        return torch.cat(parts, dim=1)


def with_offline(
    recipe: Recipe, *, mean: float, std: float, target_shape: tuple[int, ...] | None = None
) -> tuple[Recipe, Teacher | None]:
    """Read the teacher, or the size of the data's targets, and fill in ``offline.features``.

    ``mean`` and ``std`` are those of the student's data; ``target_shape`` is that of one clip's target in the
    data, once cropped, None if it has none.

    Returns:
        The recipe with its ``offline.features``, and the teacher, if there is one.

    Raises:
        InputError: The teacher or the data does not fit the recipe: front end, time grid, number of features.
    """
    if not recipe.offline.source:
        return recipe, None
    if recipe.offline.source == "teacher":
        recipe, checkpoint = read_teacher(recipe)
        model = build_model(checkpoint)
        return recipe, Teacher(model, mean=mean, std=std, statistics=recipe.offline.teacher_statistics)
    columns = recipe.encoder.grid[1]
    labels = recipe.offline.source == "labels"
    if target_shape is None or len(target_shape) != (1 if labels else 2):
        wanted = "one number a class" if labels else f"{columns} columns of features"
        carries = "nothing" if target_shape is None else f"targets of shape {list(target_shape)}"
        raise InputError(
            f"offline.source = '{recipe.offline.source}' needs {wanted} with each clip; "
            f"the data has {carries}"
        )
    if not labels and target_shape[0] != columns:
        raise InputError(
            f"a crop of the data has {target_shape[0]} columns of features, the recipe {columns}"
        )
    return _with_features(recipe, target_shape[-1], "the data"), None


def read_teacher(recipe: Recipe) -> tuple[Recipe, Checkpoint]:
    """Return the recipe with its ``offline.features`` filled in, and the checkpoint of its teacher.

    The teacher is that of ``init`` by default, as published.

    Raises:
        FileNotFoundError: No such checkpoint.
        InputError: The recipe names no teacher, or one that does not fit.
    """
    name = recipe.offline.teacher or recipe.init
    if not name:
        raise InputError(
            'offline.source = "teacher" needs a frozen network: give --set offline.teacher=CHECKPOINT, or '
            "--init CHECKPOINT, which is then the teacher too"
        )
    checkpoint = read_weights(name)
    config = checkpoint.config
    check_teacher(recipe, config.encoder, name)
    if config.frontend != recipe.frontend and checkpoint.provenance.get("sample_rate") != "default":
        raise InputError(
            f"the teacher {name} hears {config.frontend.sample_rate} Hz, the recipe has "
            f"sample_rate = {recipe.sample_rate}: both hear the same spectrograms, so they must agree"
        )
    return _with_features(recipe, config.encoder.column_width, f"the teacher {name}"), checkpoint


def check_teacher(recipe: Recipe, teacher: EncoderConfig, name: str) -> None:
    """Raise an InputError if a teacher makes other columns of a crop, or reads other mel bins."""
    student = recipe.encoder
    if teacher.input_size[0] != student.input_size[0]:
        raise InputError(
            f"the teacher {name} reads {teacher.input_size[0]} mel bins, the recipe has "
            f"{student.input_size[0]}"
        )
    full, rest = divmod(recipe.frames, teacher.grid[1] * teacher.patch_size[1])
    columns = full * teacher.grid[1] + -(-rest // teacher.patch_size[1])
    if columns != student.grid[1]:
        raise InputError(
            f"the teacher {name} makes {columns} columns of {recipe.frames} frames (its patches are "
            f"{teacher.patch_size[1]} frames wide), the student {student.grid[1]} (patch_size = "
            f"{list(student.patch_size)}): give a teacher whose patches are as wide, and whole patches in "
            f"encoder.input_size"
        )


def _with_features(recipe: Recipe, features: int, source: str) -> Recipe:
    if recipe.offline.features not in (0, features):
        raise InputError(
            f"offline.features = {recipe.offline.features}, but {source} has {features}: "
            f"set it to {features}, or to 0 for as many as there are"
        )
    return replace_fields(recipe, {"offline.features": features})
