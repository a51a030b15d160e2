"""The authors' .pth files, read safely into our config and tensors.

``torch_files.py`` reads them without executing anything. Sizes come from tensor shapes; what shapes cannot
show (the sample rate, an input length that is not a multiple of the patch) comes from names and training
arguments: see ``published_names.py``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint.format import Checkpoint, check_tensors
from hear_m2d.checkpoint.published_names import (
    ParsedName,
    first_msm_mae,
    input_and_rate,
    kind_of,
    training_details,
)
from hear_m2d.checkpoint.torch_files import load_torch_file
from hear_m2d.model.config import DEFAULT_MEAN, DEFAULT_STD, ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.model.heads import ProjectorConfig
from hear_m2d.utils.errors import InputError

HEAD_WIDTH = 64  # features of a head in every published encoder
MELS = 80
# A fine-tuned task network, a M2D-CLAP runtime, or the bare encoder.
PREFIXES = ("module.ar.runtime.backbone.", "backbone.")
RENAMED = {
    "module.head.norm.": "head.norm.",
    "module.head.mlp.mlp.0.": "head.linear.",
    "audio_proj.0.": "projector.hidden.",  # M2D-CLAP 2024
    "audio_proj.2.": "projector.out.",
    "audio_proj.sem_token": "projector.token",  # M2D-CLAP 2025
    "audio_proj.sem_blocks.": "projector.blocks.",
    "audio_proj.norm.": "projector.norm.",
}
# Beside a prefixed encoder: the front end's tables, which follow from the config, and text encoders.
BESIDE = re.compile(r"module\.ar\.runtime\.to_spec\.|to_spec\.|text_encoder\.|logit_scale$")
# Other networks in pretraining files: named in the notes, and ignored.
IGNORED_TENSORS = re.compile(
    r"(mask_token|decoder_\w+|target_blocks|target_norm|offline_predictor|text_proj|text_encoder|logit_scale)"
    r"(\.|$)"
)
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
LICENCE = "NTT Software License Agreement for Evaluation: internal, non-commercial evaluation only"


def read_published(
    path: str | os.PathLike[str], *, member: str = "", unpacked: Path | None = None
) -> Checkpoint:
    """Read a ``.pth`` file of M2D or MSM-MAE, strictly, without running any pickle code.

    The names of the file and its folder may say size and rate. If it lies in the zip ``path``, ``member`` is
    its name there, and ``unpacked`` the file with its content.

    Raises:
        InputError: Not a checkpoint, or not exactly the tensors of one.
    """
    path = Path(path).absolute()  # its folder's name may say the rate; no link is followed
    names, source = [path.stem, path.parent.name], f"{path.parent.name}/{path.name}"
    if member:
        last, *folders = reversed(member.split("/"))
        names, source = [Path(last).stem, *folders[:2], *names], f"{path.name}/{member}"
    try:
        return _checkpoint(load_torch_file(unpacked or path), path, names, source)
    except ValueError as error:
        shown = f"{path} ({member})" if member else path
        raise InputError(f"{shown} is not a readable checkpoint: {error}") from error


def _checkpoint(content: Any, path: Path, names: Sequence[str], source: str) -> Checkpoint:
    state, beside = _without_prefix(_state_dict(content))
    tensors = _tensors(state)
    arguments = content.get("args")  # a training file's; a bare state dict has none
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = arguments if isinstance(arguments, dict) else {}
    stats = tensors.pop("norm_stats", None)
    config, parsed = _config(tensors, names, arguments, stats)
    provenance = {
        **parsed.provenance,
        **dict.fromkeys(("mean", "std"), "file" if stats is not None else "default"),
    }
    if config.labels:
        provenance["labels"] = "default"
    config = replace(
        config,
        kind=kind_of(state, names, arguments),
        code_base="msm_mae" if first_msm_mae(state) else "m2d",
        licence=LICENCE,
        training={"source": source, **training_details(names, arguments, content.get("epoch"))},
    )
    ignored = beside | {key.split(".")[0] for key in state if IGNORED_TENSORS.match(key)}
    checkpoint = Checkpoint(
        config=config,
        tensors=tensors,
        path=path,
        provenance=provenance,
        ignored=tuple(sorted(ignored)),
        remarks=parsed.remarks,
    )
    check_tensors(checkpoint)
    return checkpoint


def _state_dict(content: Any) -> dict[str, Any]:
    """Return the state dict of a training file (its ``model``) or of a file that is a state dict."""
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and TENSOR_NAME.fullmatch(key) for key in state
    ):
        raise InputError(f"it holds a {type(state).__name__} that is not a state dict")
    return state


def _without_prefix(state: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Strip the encoder's prefix, if there is one, and name the other tensors."""
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in state)), "")
    bare: dict[str, Any] = {}
    beside: set[str] = set()
    for key, value in state.items():
        if prefix and not key.startswith(prefix) and BESIDE.match(key):
            beside.add(key.removeprefix("module.ar.runtime.").split(".")[0])
            continue
        name = key.removeprefix(prefix)  # the strict check names what is left over
        if name in bare:
            raise InputError(f"it holds {name} twice")
        bare[name] = value
    if "patch_embed.proj.weight" not in bare:
        raise InputError("it has no tensor patch_embed.proj.weight")
    return bare, beside


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the encoder, the head and the projector, under our names."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if IGNORED_TENSORS.match(key):
            continue
        if not isinstance(value, Tensor):
            raise InputError(f"{key} is a {type(value).__name__}, not a tensor")
        if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
            raise InputError(f"{key} is not a dense tensor")
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise InputError(f"{key} claims more elements than its storage has")
        start = next((start for start in RENAMED if key.startswith(start)), "")
        name = RENAMED.get(start, "") + key.removeprefix(start)
        if name in tensors:
            raise InputError(f"it holds {name} twice")
        tensors[name] = value.detach()
    if "head.linear.weight" in tensors:
        tensors.setdefault("head.norm.num_batches_tracked", torch.tensor(0))
    return _with_joint_biases(tensors)


def _with_joint_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn separate q and v biases (the first MSM-MAE) into a joint one; the key's is zero."""
    joint = {key: value for key, value in state.items() if not key.endswith((".q_bias", ".v_bias"))}
    for key in state.keys() - joint.keys():
        q, v = (state.get(f"{key[:-6]}{letter}_bias") for letter in "qv")
        if q is None or v is None or q.shape != v.shape or q.dtype != v.dtype:
            raise InputError(f"{key} has no other bias beside it, or one of another shape")
        joint[f"{key[:-6]}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return joint


def _config(
    state: Mapping[str, Tensor], names: Sequence[str], arguments: Mapping[str, Any], stats: Tensor | None
) -> tuple[ModelConfig, ParsedName]:
    """Return the config from shapes, and from names and arguments where shapes are not enough."""
    weight, positions = state["patch_embed.proj.weight"], state.get("pos_embed")
    if weight.ndim != 4 or 0 in weight.shape or weight.shape[2] > MELS:
        raise InputError(f"patch_embed.proj.weight has shape {list(weight.shape)}")
    if positions is None or positions.ndim != 3:
        raise InputError("pos_embed is missing or misshapen")
    width, _, high, wide = weight.shape
    if width % HEAD_WIDTH:
        raise InputError(f"its width {width} is not a multiple of {HEAD_WIDTH}, the width of a head")
    class_token = "cls_token" in state
    columns = (positions.shape[1] - class_token) // (MELS // high)
    parsed = input_and_rate(names, arguments, patch=(high, wide), columns=columns)
    hidden, head = state.get("blocks.0.mlp.fc1.weight"), state.get("head.linear.weight")
    if (head is not None and head.ndim != 2) or (stats is not None and stats.shape != (2,)):
        raise InputError("its classifier or its norm_stats are misshapen")
    mean, std = (DEFAULT_MEAN, DEFAULT_STD) if stats is None else stats.tolist()
    config = ModelConfig(
        encoder=EncoderConfig(
            input_size=(MELS, parsed.frames),
            patch_size=(high, wide),
            width=width,
            depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
            heads=width // HEAD_WIDTH,
            mlp_ratio=hidden.shape[0] / width if hidden is not None and hidden.ndim else 4.0,
            class_token=class_token,
        ),
        frontend=FrontendConfig.for_rate(parsed.sample_rate),
        mean=mean,
        std=std,
        labels=() if head is None else tuple(f"class {i}" for i in range(len(head))),
        head_width=None if head is None else int(head.shape[1]),
        projector=_projector(state),
    )
    return config, parsed


def _projector(state: Mapping[str, Tensor]) -> ProjectorConfig | None:
    """Return the sizes of M2D-CLAP's audio projector, of 2024 or 2025, where the file has one."""
    if not any(name.startswith("projector.") for name in state):
        return None
    hidden, out = state.get("projector.hidden.weight"), state.get("projector.out.weight")
    if hidden is not None and out is not None and hidden.ndim == out.ndim == 2:
        return ProjectorConfig(kind="mean", width=len(out), hidden=len(hidden))
    token, hidden = state.get("projector.token"), state.get("projector.blocks.0.mlp.fc1.weight")
    if token is None or hidden is None or token.ndim != 3 or hidden.ndim != 2:
        raise InputError("the tensors of its audio_proj are neither those of M2D-CLAP 2024 nor of 2025")
    blocks = {name.split(".")[2] for name in state if name.startswith("projector.blocks.")}
    return ProjectorConfig(kind="semantic", width=token.shape[2], hidden=len(hidden), depth=len(blocks))
