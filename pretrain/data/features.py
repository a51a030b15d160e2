"""The training items of a recipe: crops, with labels, with stored features, with noise.

The features are those of M2D-S: vectors in time, computed once by another network from the clean audio.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.pretrain.data.crops import Batch, Crops, Items, MixedCrops
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sampling import Key
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.utils.errors import InputError


def training_items(
    recipe: Recipe, data: LogMelData, *, noise: LogMelData | None = None, features: Path | None = None
) -> Items:
    """Return the items, by (epoch, clip), that the recipe trains on.

    ``features`` is a folder with ``NAME.npy`` for each file of the data, if the recipe learns from features.

    Raises:
        InputError: A required folder is missing, or a folder is given that the recipe does not use.
    """
    check_given(recipe, noise=None if noise is None else noise.folder, features=features)
    if features is None:
        labels = recipe.offline.source == "labels"
        crops = Crops(data, frames=recipe.frames, seed=recipe.seed, labels=labels)
    else:
        crops = FeatureCrops(
            data,
            features,
            frames=recipe.frames,
            seed=recipe.seed,
            column_frames=recipe.encoder.patch_size[1],
            feature_frames=recipe.offline.feature_frames,
        )
    return crops if noise is None else MixedCrops(crops, noise, ratio=recipe.noise_ratio)


def check_given(recipe: Recipe, *, noise: Path | None, features: Path | None) -> None:
    """Raise an InputError if a folder that the recipe needs is not given, or one that it does not use is."""
    ratio = recipe.noise_ratio
    if noise is None and ratio:
        raise InputError(f"noise_ratio = {ratio} needs noise: give --noise FOLDER, or --set noise_ratio=0")
    if noise is not None and not ratio:
        raise InputError(f"noise_ratio = 0 leaves the noise {noise} out: give --set noise_ratio=SHARE too")
    if features is None and recipe.offline.source == "features":
        raise InputError('offline.source = "features" needs their folder: give --features FOLDER')
    if features is not None and recipe.offline.source != "features":
        raise InputError(f'the features {features} are used only with offline.source = "features"')
    if features is not None and not features.is_dir():
        raise InputError(f"{features} is not a folder of features")


class FeatureCrops(Crops):
    """Crops with the stored features of their columns as ``target``, (columns, features).

    The vector of frame j is number j // feature_frames, as published; a wider column is the mean of its
    vectors. After its end, the last vector is repeated.

    Args:
        data: The opened shards.
        folder: ``NAME.npy`` for each file of the set, NAME as ``prepare`` calls it (its path below the
            source, with its suffix): (vectors, features).
        frames: Length of a crop.
        seed: Of the run.
        column_frames: Frames of a column.
        feature_frames: Frames that a vector stands for.

    Raises:
        InputError: A file of the data has no features; this is checked at once, not when an item is drawn.
    """

    def __init__(
        self,
        data: LogMelData,
        folder: Path,
        *,
        frames: int,
        seed: int = 0,
        column_frames: int = 2,
        feature_frames: int = 2,
    ) -> None:
        super().__init__(data, frames, seed)
        names = {data.origin(clip)[0] for clip in range(len(data))}
        missing = sorted(f"{name}.npy" for name in names if not _has_features(folder, name))
        if missing:
            raise InputError(
                f"{folder} lacks the features of {len(missing)} of the {len(names)} files of the data: "
                f"{', '.join(missing[:3])}{', …' if missing[3:] else ''}. Store them there, or prepare the "
                f"data without those files"
            )
        self.folder, self.feature_frames = folder, feature_frames
        self.columns, self.mean_of = frames // column_frames, column_frames // feature_frames

    def __getitems__(self, keys: list[Key]) -> Batch:
        target = torch.stack([self.features(key) for key in keys])
        return {**super().__getitems__(keys), "target": target}

    def features(self, key: Key) -> Tensor:
        """Return the features of a crop, (columns, features); an InputError if its file cannot be used."""
        name, begins_s = self.data.origin(key[1])
        path = self.folder / f"{name}.npy"
        vectors = _read_vectors(path)
        frontend = self.data.frontend
        begins = round(begins_s * frontend.sample_rate / frontend.hop_length)  # in frames of the file
        expected = (begins + self.data.frames(key[1])) // self.feature_frames
        # Networks without padding give one or two vectors fewer; a file may be longer than its clips.
        if len(vectors) < 0.9 * expected - 2:
            raise InputError(
                f"{path} has {len(vectors)} vectors, fewer than the {expected} of its audio at one in "
                f"{self.feature_frames} frames (feature_frames)"
            )
        first = (begins + self.start(key)) // self.feature_frames
        indices = np.minimum(np.arange(first, first + self.columns * self.mean_of), len(vectors) - 1)
        chosen = np.asarray(vectors[indices], np.float32)
        if not np.isfinite(chosen).all():
            raise InputError(f"{path} holds values that are not finite")
        return torch.from_numpy(chosen.reshape(self.columns, self.mean_of, -1).mean(1))


def _has_features(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts  # a set from an unknown source
    return not outside and (folder / f"{name}.npy").is_file()


def _read_vectors(path: Path) -> NDArray[np.floating]:
    try:
        vectors: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:  # numpy's own message advises to unpickle
        raise InputError(f"{path} is missing, or not an array of features") from error
    if vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind != "f":
        raise InputError(
            f"{path} holds {vectors.dtype} of shape {list(vectors.shape)}, not (vectors, features)"
        )
    return vectors
