"""The authors' .pth files, read safely into the same config and tensors as our own.

Nothing in the pickle runs: torch's weights-only reader builds tensors, containers and argparse namespaces,
and refuses every other type by name. Sizes come from tensor shapes; what shapes cannot tell (the sample
rate, an input length that is no multiple of the patch) comes from the file's or folder's name.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint import Checkpoint, build_model
from hear_m2d.config import DEFAULT_MEAN, DEFAULT_STD, ModelConfig
from hear_m2d.encoder import EncoderConfig
from hear_m2d.frontend import FrontendConfig

HEAD_WIDTH = 64  # of every published encoder
MELS = 80
PREFIXES = ("module.ar.runtime.backbone.", "backbone.")
# What pretraining files hold beside the encoder: named in the notes, and left.
LEFT = re.compile(
    r"(mask_token|decoder_\w+|target_blocks|target_norm|offline_predictor|audio_proj|text_proj|logit_scale)(\.|$)"
)
NAME = re.compile(r"(?<!\d)(?P<mels>\d+)x(?P<frames>\d+)p(?P<high>\d+)x(?P<wide>\d+)(?:p(?P<khz>\d+)k)?")
LICENCE = "NTT Software License Agreement for Evaluation: internal, non-commercial evaluation only"


def read_published(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a ``.pth`` file of M2D or MSM-MAE, strictly, without running any pickle code.

    Args:
        path: The file; its name and its folder's name may say the input size and the rate.

    Returns:
        The encoder, with notes on what the file did not say and what was left in it.

    Raises:
        ValueError: Not a checkpoint, or not exactly the tensors of one.
    """
    path = Path(path)
    state, notes = _encoder_state(_load(path), path)
    try:
        config = _config(state, path, notes)
        state.pop("norm_stats", None)
        checkpoint = Checkpoint(config=config, tensors=state, path=path, notes=tuple(notes))
        build_model(checkpoint)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return checkpoint


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's advice on odd pickles: the error below says enough
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global)[: ]+([\w.]+)", str(error))
            why = (
                f"a pickle that holds {found[1] or found[2]}, which no checkpoint does; it was not run"
                if found
                else "not a readable checkpoint: its pickle is damaged, or holds what no checkpoint does"
            )
            raise ValueError(f"{path} is {why}") from error
        except Exception as error:
            # Whatever torch's reader trips over in a damaged file (struct.error, RecursionError, an OSError
            # from seeking past the end of a cut file, …): the file itself is open.
            raise ValueError(f"{path} is not a readable checkpoint: {error}") from error


def _encoder_state(loaded: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder's tensors under timm's names, and notes."""
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise ValueError(f"{path} is a pickle, but not a checkpoint: it holds a {type(loaded).__name__}")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            others = [key for key in state if not key.startswith(prefix)]
            if others:
                raise ValueError(f"{path} holds tensors beside its encoder that are not read: {others[0]}, …")
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if "patch_embed.proj.weight" not in state:
        raise ValueError(
            f"{path} is a pickle, but not a checkpoint: it has no tensor patch_embed.proj.weight"
        )
    kept = {key: value for key, value in state.items() if not LEFT.match(key)}
    for key, value in kept.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
    families = sorted({key.split(".")[0] for key in state if key not in kept})
    return kept, [f"left in the file: {', '.join(families)}"] if families else []


def _config(state: Mapping[str, Tensor], path: Path, notes: list[str]) -> ModelConfig:
    weight = state["patch_embed.proj.weight"]
    positions = state.get("pos_embed")
    if weight.ndim != 4 or positions is None or positions.ndim != 3 or not 0 < weight.shape[2] <= MELS:
        raise ValueError("patch_embed.proj.weight or pos_embed is missing or misshapen")
    if 0 in weight.shape:
        raise ValueError(f"patch_embed.proj.weight is empty: its shape is {list(weight.shape)}")
    width, _, high, wide = weight.shape
    rows = MELS // high
    class_token = "cls_token" in state
    columns = (positions.shape[1] - class_token) // rows
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    frames, rate = _from_name(path, (high, wide), columns, notes)
    hidden = state.get("blocks.0.mlp.fc1.weight")
    stats = state.get("norm_stats")
    if stats is None:
        notes.append(f"the file stores no statistics: mean {DEFAULT_MEAN}, std {DEFAULT_STD}")
    elif stats.shape != (2,):
        raise ValueError(f"norm_stats has shape {list(stats.shape)}, not [2]")
    return ModelConfig(
        kind="m2d",
        encoder=EncoderConfig(
            input_size=(MELS, frames),
            patch_size=(high, wide),
            width=width,
            depth=depth,
            heads=max(1, width // HEAD_WIDTH),
            mlp_ratio=hidden.shape[0] / width if hidden is not None and hidden.ndim else 4.0,
            class_token=class_token,
        ),
        frontend=FrontendConfig.for_rate(rate),
        mean=DEFAULT_MEAN if stats is None else float(stats[0]),
        std=DEFAULT_STD if stats is None else float(stats[1]),
        licence=LICENCE,
        training={"source": path.parent.name + "/" + path.name},
    )


def _from_name(path: Path, patch: tuple[int, int], columns: int, notes: list[str]) -> tuple[int, int]:
    """Return the input frames and the sample rate that the name tells, where it fits the tensors."""
    for name in (path.stem, path.parent.name):
        found = NAME.search(name)
        if not found:
            continue
        frames = int(found["frames"])
        if (int(found["high"]), int(found["wide"])) == patch and frames // patch[1] == columns:
            return frames, int(found["khz"] or 16) * 1000
        notes.append(f"the name {name} does not fit the tensors and was not used")
    notes.append("nothing says the sample rate: 16000 Hz taken; give sample_rate= if it is another")
    return columns * patch[1], 16000
