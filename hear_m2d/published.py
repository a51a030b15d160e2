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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint import Checkpoint, empty_model
from hear_m2d.config import DEFAULT_MEAN, DEFAULT_STD, ModelConfig
from hear_m2d.encoder import EncoderConfig
from hear_m2d.frontend import FrontendConfig

HEAD_WIDTH = 64  # of every published encoder
MELS = 80
# A fine-tuned task network, a M2D-CLAP runtime, or the bare encoder.
PREFIXES = ("module.ar.runtime.backbone.", "backbone.")
HEAD = {"module.head.norm.": "head.norm.", "module.head.mlp.mlp.0.": "head.linear."}
# Beside a prefixed encoder: the front end's tables, which follow from the config, and text encoders.
BESIDE = re.compile(r"module\.ar\.runtime\.to_spec\.|to_spec\.|text_encoder\.|logit_scale$")
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
    path = Path(path).absolute()  # its folder's name may say the rate; no link is followed
    whole = _state_dict(_load(path), path)
    state, notes = _encoder_state(whole, path)
    try:
        kind, code_base = _origin(whole)
        config = replace(_config(state, path, notes), kind=kind, code_base=code_base)
        state.pop("norm_stats", None)
        checkpoint = Checkpoint(config=config, tensors=state, path=path, notes=tuple(notes))
        empty_model(checkpoint)
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


def _state_dict(loaded: Any, path: Path) -> Mapping[str, Any]:
    """Return the state dict of a training file (its ``model``) or of a bare one."""
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise ValueError(f"{path} is a pickle, but not a checkpoint: it holds a {type(loaded).__name__}")
    return state


def _origin(state: Mapping[str, Any]) -> tuple[str, str]:
    """Tell the kind and the code base from which networks and biases a file holds."""
    first_msm_mae = any(key.endswith(".q_bias") for key in state)
    decoder, target = (any(key.startswith(p) for key in state) for p in ("decoder_blocks.", "target_blocks."))
    kind = "msm_mae" if first_msm_mae or (decoder and not target) else "m2d"
    return kind, "msm_mae" if first_msm_mae else "m2d"


def _encoder_state(state: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder's tensors under timm's names (and the head's), and notes."""
    beside: set[str] = set()
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state, beside = _without_prefix(state, prefix)
            break
    if "patch_embed.proj.weight" not in state:
        raise ValueError(
            f"{path} is a pickle, but not a checkpoint: it has no tensor patch_embed.proj.weight"
        )
    kept = _joined_biases({key: value for key, value in state.items() if not LEFT.match(key)})
    for key, value in kept.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
    families = sorted(beside | {key.split(".")[0] for key in state if LEFT.match(key)})
    return kept, [f"left in the file: {', '.join(families)}"] if families else []


def _without_prefix(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], set[str]]:
    """Strip the encoder's prefix, keep a classification head, name what stands beside both."""
    kept: dict[str, Any] = {}
    beside = set()
    for key, value in state.items():
        head = next((start for start in HEAD if key.startswith(start)), None)
        if key.startswith(prefix):
            kept[key.removeprefix(prefix)] = value
        elif head:
            kept[HEAD[head] + key.removeprefix(head)] = value
        elif BESIDE.match(key):
            beside.add(key.removeprefix("module.ar.runtime.").split(".")[0])
        else:
            kept[key] = value  # left over: the strict check names it
    if "head.linear.weight" in kept:
        kept.setdefault("head.norm.num_batches_tracked", torch.tensor(0))
    return kept, beside


def _joined_biases(state: dict[str, Any]) -> dict[str, Any]:
    """Turn separate q and v biases (the first MSM-MAE) into a joint one; the key's is zero."""
    joined = {key: value for key, value in state.items() if not key.endswith((".q_bias", ".v_bias"))}
    for key, q in state.items():
        if key.endswith(".attn.q_bias"):
            v = state.get(key.replace("q_bias", "v_bias"))
            if not isinstance(q, Tensor) or not isinstance(v, Tensor):
                raise ValueError(f"{key} has no v_bias beside it")
            joined[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return joined


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
    head = state.get("head.linear.weight")
    if head is not None and head.ndim != 2:
        raise ValueError(f"the classifier's weight has shape {list(head.shape)}: it has two axes")
    labels = () if head is None else tuple(f"class {i}" for i in range(len(head)))
    if labels:
        notes.append(f"the file does not name its {len(labels)} classes: they are numbered")
    hidden = state.get("blocks.0.mlp.fc1.weight")
    stats = state.get("norm_stats")
    if stats is None:
        notes.append(f"the file stores no statistics: mean {DEFAULT_MEAN}, std {DEFAULT_STD}")
    elif stats.shape != (2,):
        raise ValueError(f"norm_stats has shape {list(stats.shape)}, not [2]")
    return ModelConfig(
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
        labels=labels,
        head_width=None if head is None else int(head.shape[1]),
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
