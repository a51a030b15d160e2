"""Rate, input length and kind of a published file, from its names and training arguments.

The names are those of the file, its folder and its zip: ``<model>-<mels>x<frames>p<high>x<wide>[p<rate>k]…``.
A name that contradicts the tensors is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME = re.compile(r"(?<!\d)(?P<mels>\d+)x(?P<frames>\d+)p(?P<high>\d+)x(?P<wide>\d+)(?:p(?P<khz>\d+)k)?")
MODEL = re.compile(r"(m2d_(?:clap|as|s|x)|msm_mae|m2d)_vit")
RATIO = re.compile(r"-mr(\d{1,3})(?!\d)")
PRETRAINED = re.compile(r"checkpoint-(\d{1,6})(?!\d)")
FINE_TUNED = re.compile(r"weights_ep(\d{1,6})it\d+-(\d?\.\d{1,9})")
ON_AUDIOSET = re.compile(r"_AS-FT|_as_[0-9a-f]{6,}")
# The training arguments that `info` shows; the rest are folders and switches.
KEPT_ARGUMENTS = (
    "epochs", "batch_size", "accum_iter", "world_size", "eff_batch_size", "mask_ratio", "blr", "lr", "min_lr",
    "warmup_epochs", "weight_decay", "clip_grad", "optim", "ema_decay_init", "ema_decay", "decoder_depth",
    "loss_fn", "loss_m2d", "loss_off", "norm_pix_loss", "noise_ratio", "csv_main", "data_path", "dataset",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class ParsedName:
    """Input length and sample rate, and their sources."""

    frames: int  # of one window
    sample_rate: int  # hertz
    provenance: Mapping[str, str]  # of both: ``file`` (tensors or arguments), ``name`` or ``default``
    remarks: tuple[str, ...]  # sentences about values that were not used


def input_and_rate(
    names: Sequence[str], arguments: Mapping[str, Any], *, patch: tuple[int, int], columns: int
) -> ParsedName:
    """Find the input length and the sample rate; the first name that fits the tensors counts.

    ``patch`` (mel bins and frames) and ``columns`` (patches along time) are from the tensors.
    """
    remarks: list[str] = []
    frames, rate = columns * patch[1], 16000
    # Where a patch is one frame wide, the tensors alone give the length.
    provenance = {"input_frames": "file" if patch[1] == 1 else "default", "sample_rate": "default"}
    rates = [_hertz(arguments.get(key)) for key in ("sample_rate", "sr", "sampling_rate")]
    stated = next(filter(None, rates), 0)
    if stated:
        rate, provenance["sample_rate"] = stated, "file"
    if (length := _length(arguments.get("input_size"))) // patch[1] == columns:
        frames, provenance["input_frames"] = length, "file"
    folders = [_last_part(arguments.get(key)) for key in ("output_dir", "log_dir")]
    for name in (*names, *folders):
        if not (match := NAME.search(name)):
            continue
        length = int(match["frames"][:9])
        if (match["high"], match["wide"]) != (str(patch[0]), str(patch[1])) or length // patch[1] != columns:
            remarks.append(f"the name {name} does not fit the tensors and was not used")
            continue
        frames, provenance["input_frames"] = length, "name"
        hertz = _hertz(match["khz"])
        if hertz and stated not in (0, hertz):
            remarks.append(f"the arguments say {stated} Hz, which was not used")
        if hertz or not stated:  # a published name without a rate means 16 kHz
            rate, provenance["sample_rate"] = hertz or 16000, "name"
        break
    return ParsedName(frames, rate, provenance, tuple(remarks))


def kind_of(state: Mapping[str, Any], names: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """Return the kind, from the networks in the file, or else its name, or else its predicted features."""
    decoder, target = (any(key.startswith(p) for key in state) for p in ("decoder_blocks.", "target_blocks."))
    if first_msm_mae(state) or (decoder and not target):
        return "msm_mae"
    if any(key.startswith("audio_proj.") for key in state):
        return "m2d_clap"
    model = arguments.get("model")
    for name in (*names, model if isinstance(model, str) else ""):
        match = MODEL.match(name)
        if match and not (target and match[1] == "msm_mae"):
            return match[1]
    offline, patch = state.get("offline_predictor.weight"), state.get("patch_embed.proj.weight")
    if offline is None or len(offline.shape) != 2 or patch is None:
        return "m2d"
    classes, features = offline.shape
    if classes != features:  # M2D-AS predicts classes; the others features of their own width
        return "m2d_as"
    return "m2d_s" if features == patch.shape[0] else "m2d_x"


def first_msm_mae(state: Mapping[str, Any]) -> bool:
    """Return whether the file is of the first MSM-MAE code, which stores no bias of the keys."""
    return any(key.endswith(".q_bias") for key in state)


def training_details(names: Sequence[str], arguments: Mapping[str, Any], epoch: Any) -> dict[str, Any]:
    """Return what names and arguments state about the training, as JSON values."""
    plain = {key: _plain(arguments[key]) for key in KEPT_ARGUMENTS if key in arguments}
    details = {key: value for key, value in plain.items() if value not in (None, "", [])}
    if type(epoch) is int:
        details["epoch"] = epoch
    for name in names:
        if match := PRETRAINED.search(name):
            details.setdefault("epoch", int(match[1]))
        if match := FINE_TUNED.search(name):
            details |= {"epoch": int(match[1]), "score": float(match[2])}
        if ON_AUDIOSET.search(name):
            details["fine_tuned_on"] = "AudioSet"
        if match := RATIO.search(name):
            details.setdefault("mask_ratio", int(match[1]) / 10 ** len(match[1]))
    return details


def _last_part(folder: Any) -> str:
    return re.split(r"[/\\]", folder.rstrip("/\\"))[-1][:200] if isinstance(folder, str) else ""


def _length(size: Any) -> int:
    """Return the frames of an ``input_size`` such as [80, 608] or "80x608"; -1 for anything else."""
    if isinstance(size, str):
        size = [int(n) if n.isdecimal() and len(n) < 9 else None for n in size.split("x")]
    if isinstance(size, list | tuple) and len(size) == 2 and type(size[1]) is int and size[1] > 0:
        return size[1]
    return -1


def _hertz(rate: Any) -> int | None:
    """Return a sample rate given as 16000, 16, "16k" or "16000"; None for anything else."""
    if isinstance(rate, str):
        match = re.fullmatch(r"(\d{1,8}) *k?(hz)?", rate.strip().lower())
        rate = int(match[1]) if match else None
    if type(rate) not in (int, float) or not 0 < rate < 10**9:
        return None
    hertz = int(rate * 1000 if rate < 1000 else rate)
    return hertz if 4000 <= hertz <= 192_000 and hertz % 100 == 0 else None


def _plain(value: Any) -> Any:
    """Return a scalar or a list of scalars as JSON values; None for anything else."""
    if isinstance(value, list | tuple):  # nested lists are left out unread: a list may contain itself
        scalars = [_plain(item) for item in value[:16] if not isinstance(item, list | tuple)]
        return [scalar for scalar in scalars if scalar is not None]
    if isinstance(value, str):
        return value[:200].encode("ascii", "backslashreplace").decode()
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if type(value) is bool or (type(value) is int and abs(value) < 2**63) else None
