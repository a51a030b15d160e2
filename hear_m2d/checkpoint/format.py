"""One checkpoint is one .safetensors file: tensors, and the config as JSON in its metadata.

Reading is strict: every tensor present, none left over, shapes and dtype right, and the bytes those that
were written (their SHA-256 is in the metadata). No pickle is involved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import resize_positions
from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel
from hear_m2d.model.timestamps import frame_step
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write

METADATA_KEY = "hear_m2d"
STORED_NOTES = ("notes", "guessed")  # of what the file did not say, within the config's ``training``
ANSWERS = ("sample_rate", "input_frames", "mean", "std")  # options that say what a file should have said


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        config: What it says about itself.
        tensors: The encoder's state dict, plus ``head.*`` where it classifies and ``projector.*`` where it
            has M2D-CLAP's audio projector.
        path: Where it was read.
        notes: Sentences on what the file did not say, and what was left in it.
        guessed: Those of the notes that deserve a warning, by the option that answers them.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    path: Path
    notes: tuple[str, ...] = ()
    guessed: Mapping[str, str] = field(default_factory=dict)


def save_checkpoint(path: str | os.PathLike[str], model: HearModel) -> None:
    """Write a model's weights and config to one ``.safetensors`` file, whole or not at all.

    Args:
        path: The final name.
        model: The model; its weights are stored as float32.
    """
    tensors = {name: _storable(tensor) for name, tensor in _state(model).items()}
    write_tensors(path, tensors, {METADATA_KEY: model.config.to_json()})


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write tensors with JSON metadata; each JSON object also gets the ``sha256`` of the data section."""
    # Serialized once, which takes most of the time: a random text of the same length stands for the digest.
    stand_in = secrets.token_hex(hashlib.sha256().digest_size)
    texts = {key: json.dumps({**value, "sha256": stand_in}) for key, value in metadata.items()}
    data = safetensors.torch.save(dict(tensors), metadata=texts)
    section = _data_section(data)
    digest = hashlib.sha256(section).hexdigest()
    with atomic_write(path) as file:
        file.write(data[: len(data) - len(section)].replace(stand_in.encode(), digest.encode()))
        file.write(section)


def read_tensors(
    path: str | os.PathLike[str], key: str, *, data: bytes | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors`, checking its SHA-256.

    Args:
        path: A ``.safetensors`` file.
        key: Which JSON object of the metadata to return.
        data: Its bytes, where they are at hand.

    Returns:
        The tensors, and the JSON object without the checksum.

    Raises:
        ValueError: Not a safetensors file, without that metadata, or changed since it was written.
    """
    path = Path(path)
    data = path.read_bytes() if data is None else data
    try:
        tensors = safetensors.torch.load(data)
        texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (safetensors.SafetensorError, KeyError, ValueError, MemoryError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if key not in texts:
        raise InputError(f"{path} was not written by hear-m2d as {key!r}: its metadata does not say so")
    try:
        facts = json.loads(texts[key])
        written = facts.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"the metadata of {path} is damaged: {error!r}") from error
    if hashlib.sha256(_data_section(data)).hexdigest() != written:
        raise InputError(f"{path} is damaged: its tensors do not match the SHA-256 in its metadata")
    return tensors, facts


def read_checkpoint(path: str | os.PathLike[str], *, data: bytes | None = None) -> Checkpoint:
    """Read one of our own checkpoints, strictly.

    Args:
        path: A ``.safetensors`` file.
        data: Its bytes, where they are at hand.

    Raises:
        ValueError: Unreadable, damaged, or not holding exactly the tensors its config asks for.
    """
    path = Path(path)
    tensors, facts = read_tensors(path, METADATA_KEY, data=data)
    try:
        config = ModelConfig.from_json(facts)
        checkpoint = Checkpoint(config=config, tensors=tensors, path=path, **_stored_notes(config))
        empty_model(checkpoint)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return checkpoint


@torch.inference_mode(mode=False)  # weights made in inference mode could never be trained
def build_model(checkpoint: Checkpoint, options: Options | None = None) -> HearModel:
    """Return the model of a checkpoint, in eval mode.

    Raises:
        ValueError: Tensors missing, left over or misshapen, or an option that does not fit.
    """
    options = options or Options()
    checkpoint = settle_notes(checkpoint, options, when="loading")  # for the file that it is saved to
    if options.dur_frames is not None:
        checkpoint = _for_duration(checkpoint, options.dur_frames)
    model = empty_model(checkpoint, options)
    # Copies, so that no two models share weights; and a .pth may hold one storage under two names.
    weights = {name: tensor.clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    for prefix, part in _parts(model).items():
        state = {n.removeprefix(prefix): t for n, t in weights.items() if _prefix(n) == prefix}
        part.load_state_dict(state, assign=True)
    model.frontend = LogMelSpectrogram(model.config.frontend)  # its tables follow from the config
    if options.dtype == "bfloat16":
        model.encoder.to(torch.bfloat16)
    return model.eval()


def empty_model(checkpoint: Checkpoint, options: Options | None = None) -> HearModel:
    """Return a model without storage, having held the checkpoint's tensors against it.

    Raises:
        ValueError: Tensors missing, left over or misshapen, or an option that does not fit.
    """
    # Before anything is built by them: a config may lie about its sizes.
    sizes, positions = checkpoint.config.encoder, checkpoint.tensors.get("pos_embed")
    if positions is None:
        raise InputError("the tensors do not fit the config: pos_embed is missing")
    wanted = [1, sizes.class_token + sizes.grid[0] * sizes.grid[1], sizes.width]
    if list(positions.shape) != wanted:
        raise InputError(
            f"the tensors do not fit the config: pos_embed has shape {list(positions.shape)}, not {wanted}"
        )
    blocks = {name.split(".")[1] for name in checkpoint.tensors if name.startswith("blocks.")}
    if len(blocks) != sizes.depth:
        raise InputError(
            f"the tensors do not fit the config: they have {len(blocks)} blocks, not {sizes.depth}"
        )
    with torch.device("meta"):
        model = HearModel(checkpoint.config, options).float()  # whatever torch's default dtype is
    expected = _state(model)
    faults = [f"{name} is missing" for name in expected if name not in checkpoint.tensors]
    for name, tensor in checkpoint.tensors.items():
        if name not in expected:
            faults.append(f"{name} is not part of the model")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}")
        elif tensor.dtype != expected[name].dtype:
            faults.append(f"{name} is {tensor.dtype}, not {expected[name].dtype}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"the tensors do not fit the config: {'; '.join(faults[:5])}{more}")
    return model


def settle_notes(
    checkpoint: Checkpoint, options: Options, *, when: str, more: Iterable[str] = ()
) -> Checkpoint:
    """Return the checkpoint with what it still leaves open, in its config too, which is what is saved.

    Args:
        checkpoint: As read.
        options: Those of ``ANSWERS`` that are given put an end to the notes and guesses that ask for them.
        when: At what they were given, for the note that says so.
        more: What else was given.
    """
    given = [*(name for name in ANSWERS if getattr(options, name) is not None), *more]
    notes = [note for note in checkpoint.notes if not _is_answered(note, given)]
    notes += [f"given by hand at {when}: {', '.join(given)}"] if given else []
    notes += filter(None, [rate_conflict(checkpoint, options.sample_rate)])
    notes = list(dict.fromkeys(notes))  # the same may have been given for the file before
    guessed = {name: guess for name, guess in checkpoint.guessed.items() if name not in given}
    training = {key: value for key, value in checkpoint.config.training.items() if key not in STORED_NOTES}
    training |= {key: value for key, value in zip(STORED_NOTES, (notes, guessed), strict=True) if value}
    config = replace(checkpoint.config, training=training)
    return replace(checkpoint, config=config, notes=tuple(notes), guessed=guessed)


def _is_answered(note: str, given: Iterable[str]) -> bool:
    """Return whether a note asks for options, and all of them are given."""
    asked = {name for name in (*ANSWERS, "labels") if f"{name}=" in note}
    return bool(asked) and asked.issubset(given)


def rate_conflict(checkpoint: Checkpoint, sample_rate: int | None) -> str:
    """Return a sentence where a rate given by hand is not the one that the file states, else nothing."""
    stated = checkpoint.config.frontend.sample_rate
    if sample_rate in (None, stated) or "sample_rate" in checkpoint.guessed:
        return ""
    return (
        f"sample_rate={sample_rate} is given, and the file or its name says {stated} Hz: embeddings are "
        "wrong unless that is. The option says what the model was trained with; it resamples nothing"
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a person wants to know of a checkpoint, in the order to show it."""
    config = checkpoint.config
    encoder, frontend = config.encoder, config.frontend
    weights = sum(t.numel() for n, t in checkpoint.tensors.items() if n != "pos_embed")
    step = frame_step(encoder.patch_size[1], frontend.hop_ms)
    return {
        "file": str(checkpoint.path),
        "kind": config.kind,
        "code_base": config.code_base,
        "input": f"{encoder.input_size[0]}x{encoder.input_size[1]} (mel bins x frames)",
        "patch": f"{encoder.patch_size[0]}x{encoder.patch_size[1]}",
        "width": encoder.width,
        "blocks": encoder.depth,
        "heads": encoder.heads,
        "class_token": encoder.class_token,
        "parameters": weights,
        "sample_rate": frontend.sample_rate,
        "hop_ms": frontend.hop_ms,
        "column_ms": encoder.patch_size[1] * frontend.hop_ms,
        "timestamp_step_ms": step * frontend.hop_ms,
        "scene_embedding_size": encoder.column_width,
        "timestamp_embedding_size": encoder.column_width,
        "mean": config.mean,
        "std": config.std,
        "classes": len(config.labels),
        "classifier_width": config.head_width,
        "projector": dataclasses.asdict(config.projector) if config.projector else None,
        "licence": config.licence,
        "training": {key: value for key, value in config.training.items() if key not in STORED_NOTES},
        "notes": list(checkpoint.notes),
    }


def _stored_notes(config: ModelConfig) -> dict[str, Any]:
    """Return the notes and guesses that the config keeps, where they are some."""
    notes, guessed = (config.training.get(key) for key in STORED_NOTES)
    rate = guessed.get("sample_rate") if isinstance(guessed, dict) else None
    return {
        "notes": tuple(map(str, notes)) if isinstance(notes, list) else (),
        "guessed": {"sample_rate": rate} if isinstance(rate, str) else {},
    }


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


def _parts(model: HearModel) -> dict[str, nn.Module]:
    """Return what holds weights, by the prefix of its tensors' names."""
    parts = {"": model.encoder, "head.": model.head, "projector.": model.projector}
    return {prefix: part for prefix, part in parts.items() if part is not None}


def _prefix(name: str) -> str:
    return next((prefix for prefix in ("head.", "projector.") if name.startswith(prefix)), "")


def _state(model: HearModel) -> dict[str, Tensor]:
    parts = _parts(model).items()
    return {prefix + name: tensor for prefix, part in parts for name, tensor in part.state_dict().items()}


def _storable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def _data_section(data: bytes) -> memoryview:
    header = int.from_bytes(data[:8], "little")
    return memoryview(data)[8 + header :]
