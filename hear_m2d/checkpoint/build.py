"""Build a model from a checkpoint, with values from the user in place of the file's."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from hear_m2d.checkpoint.card import given_by_user, notes_of, rate_conflict, rate_is_a_guess
from hear_m2d.checkpoint.format import Checkpoint, check_tensors, model_parts
from hear_m2d.model.config import Options
from hear_m2d.model.encoder import resize_positions
from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.version import installed_version

logger = logging.getLogger(__name__)

STORED_OPTIONS = ("sample_rate", "input_frames", "mean", "std")  # options that replace values of the file


def model_of(checkpoint: Checkpoint, options: Options) -> HearModel:
    """Return the model of a checkpoint, in eval mode, on the CPU.

    Warns of a guessed sample rate, and logs what else the file leaves open.

    Raises:
        InputError: An option that does not fit the checkpoint.
    """
    model = build_model(checkpoint, options)
    merged = with_options(checkpoint, options)
    doubts = rate_is_a_guess(merged), rate_conflict(checkpoint, options.sample_rate)
    for text in filter(None, doubts):
        warnings.warn(f"{checkpoint.path}: {text}", stacklevel=3)
    for note in notes_of(merged):
        if note not in (*doubts, given_by_user(merged)):
            logger.info("%s: %s", checkpoint.path, note)
    return model


@torch.inference_mode(mode=False)  # weights made in inference mode cannot be trained
def build_model(checkpoint: Checkpoint, options: Options | None = None) -> HearModel:
    """Return the model of a checkpoint, in eval mode.

    Raises:
        InputError: Tensors missing, left over or misshapen, or an option that does not fit.
    """
    options = options or Options()
    checkpoint = with_options(checkpoint, options)
    checkpoint = replace(checkpoint, config=checkpoint.stored_config())  # for the file that it is saved to
    if options.dur_frames is not None:
        checkpoint = _for_duration(checkpoint, options.dur_frames)
    model = check_tensors(checkpoint, options)
    for prefix, part in model_parts(model).items():
        # Copies, so that no two models share weights; and a .pth may hold one storage under two names.
        state = {
            name: checkpoint.tensors[prefix + name].to(expected.dtype, copy=True).contiguous()
            for name, expected in part.state_dict().items()
        }
        part.load_state_dict(state, assign=True)
    model.frontend = LogMelSpectrogram(model.config.frontend)  # its tables are computed from the config
    if options.dtype == "bfloat16":
        model.encoder.to(torch.bfloat16)
    return model.eval()


def with_options(checkpoint: Checkpoint, options: Options, *, labels: Sequence[str] = ()) -> Checkpoint:
    """Return the checkpoint with the user's values (``STORED_OPTIONS``, labels) in place of the file's.

    Raises:
        InputError: A value that does not fit the checkpoint.
    """
    given = [name for name in STORED_OPTIONS if getattr(options, name) is not None]
    config = replace(options, dur_frames=None).override(checkpoint.config) if given else checkpoint.config
    sources = dict.fromkeys([*given, "labels"] if labels else given, "user")
    conflict = rate_conflict(checkpoint, options.sample_rate)
    remarks = (*checkpoint.remarks, conflict) if conflict else checkpoint.remarks
    return replace(
        checkpoint,
        config=replace(config, labels=tuple(labels) or config.labels),
        provenance={**checkpoint.provenance, **sources},
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _for_duration(checkpoint: Checkpoint, frames: int) -> Checkpoint:
    """Return the checkpoint with its positions resampled or cropped to one window of that many frames."""
    encoder = checkpoint.config.encoder
    resized = replace(encoder, input_size=(encoder.input_size[0], frames))
    positions = resize_positions(checkpoint.tensors["pos_embed"], encoder.grid, resized.grid[1])
    return replace(
        checkpoint,
        config=replace(checkpoint.config, encoder=resized),
        tensors={**checkpoint.tensors, "pos_embed": positions},
    )


def weights_digest(model: HearModel) -> str:
    """Return a SHA-256 of everything that a model's embeddings depend on, except the audio."""
    config = {name: value for name, value in model.config.to_json().items() if name != "training"}
    settings = {"hear_m2d": installed_version(), "config": config, "options": asdict(model.options)}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
