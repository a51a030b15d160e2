"""One checkpoint is one ``.safetensors`` file: tensors, and the config as JSON in its metadata.

Reading is strict: no tensor may be missing or left over, and shapes and types must be right. The metadata has
the SHA-256 of the tensors' bytes. Files are memory-mapped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write

METADATA_KEY = "hear_m2d"
STORED = ("provenance", "ignored", "notes")  # fields of a Checkpoint, stored in the config's ``training``
PROVENANCE = ("file", "name", "default", "user")
HALF = {torch.float32: torch.float16}  # also allowed in a file; becomes float32 in the model
VERIFY_BELOW = 32 << 20  # bytes: hashing a file of this size takes almost no time


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        config: Config of the model.
        tensors: The encoder's state dict, plus ``head.*`` where it classifies and ``projector.*`` where it
            has M2D-CLAP's audio projector; float32, or float16 that becomes float32 in the model.
        path: The file.
        provenance: Sources of ``sample_rate``, ``input_frames``, ``mean``, ``std`` and ``labels``:
            ``file``, ``name`` (of the file), ``default`` or ``user``. A missing field is from the file.
        ignored: Groups of tensors in the file that are not read.
        remarks: Further sentences about the file; :func:`~hear_m2d.checkpoint.card.notes_of` has the others.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    path: Path
    provenance: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def stored_config(self) -> ModelConfig:
        """Return the config as it is written to a file, with the sources of its numbers."""
        provenance = {name: source for name, source in self.provenance.items() if source != "file"}
        values = zip(STORED, (provenance, list(self.ignored), list(self.remarks)), strict=True)
        training = {key: value for key, value in self.config.training.items() if key not in STORED}
        return dataclasses.replace(self.config, training=training | {k: v for k, v in values if v})


def save_checkpoint(path: str | os.PathLike[str], model: HearModel, *, dtype: str = "float32") -> None:
    """Write a model's weights and config to one ``.safetensors`` file, whole or not at all.

    Args:
        path: The final name.
        model: The model.
        dtype: Of the stored floating-point tensors: ``float32``, or ``float16`` for half of the size.

    Raises:
        InputError: Another ``dtype``, or a weight that is too large for float16.
    """
    write_model_tensors(path, model_state(model), model.config, dtype=dtype)


def write_model_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: ModelConfig, *, dtype: str
) -> None:
    """Write the tensors of a model and its config: see :func:`save_checkpoint`."""
    if dtype not in ("float32", "float16"):
        raise InputError(f"dtype must be float32 or float16, got {dtype!r}")
    stored = {}
    for name, tensor in tensors.items():
        # Copies: a .pth may hold one storage under two names.
        kind = getattr(torch, dtype) if tensor.is_floating_point() else None
        stored[name] = tensor.detach().to("cpu", kind, copy=True).contiguous()
        if dtype == "float16" and bool(stored[name].isinf().any()):
            raise InputError(f"{name} has values that are too large for float16: store float32")
    write_tensors(path, stored, {METADATA_KEY: config.to_json()})


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write tensors with JSON metadata; each JSON object also gets the ``sha256`` of the data section."""
    # Serialized once, which takes most of the time: a random text of the same length stands for the digest.
    stand_in = secrets.token_hex(hashlib.sha256().digest_size)
    texts = {key: json.dumps({**value, "sha256": stand_in}) for key, value in metadata.items()}
    data = safetensors.torch.save(dict(tensors), metadata=texts)
    start = 8 + int.from_bytes(data[:8], "little")  # of the data section, after the header
    section = memoryview(data)[start:]
    digest = hashlib.sha256(section).hexdigest()
    with atomic_write(path) as file:
        file.write(data[:start].replace(stand_in.encode(), digest.encode()))
        file.write(section)


def read_tensors(
    path: str | os.PathLike[str], key: str, *, verify: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors`.

    Args:
        path: A ``.safetensors`` file; its tensors are memory-mapped.
        key: Key of the JSON object of the metadata to return.
        verify: Compare the SHA-256 of the tensors with the one in the metadata.

    Returns:
        The tensors, and the JSON object without the checksum.

    Raises:
        InputError: Not a safetensors file, without that metadata, or changed since it was written.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, KeyError, ValueError, MemoryError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if key not in texts:
        raise InputError(f"{path} was not written by hear-m2d as {key!r}: its metadata does not say so")
    try:
        content = json.loads(texts[key])
        expected = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"the metadata of {path} is damaged: {error!r}") from error
    if verify:
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise InputError(f"{path} is damaged: its tensors do not match the SHA-256 in its metadata")
    return tensors, content


def read_checkpoint(path: str | os.PathLike[str], *, verify: bool | None = None) -> Checkpoint:
    """Read one of our own checkpoints, strictly.

    Args:
        path: A ``.safetensors`` file.
        verify: Compare the SHA-256 of the tensors with the stored one; None: where the file is small.

    Raises:
        InputError: Unreadable, damaged, or not holding exactly the tensors its config asks for.
    """
    path = Path(path)
    verify = path.stat().st_size < VERIFY_BELOW if verify is None else verify
    tensors, content = read_tensors(path, METADATA_KEY, verify=verify)
    try:
        config = ModelConfig.from_json(content)
        checkpoint = Checkpoint(config=config, tensors=tensors, path=path, **_stored_fields(config))
        check_tensors(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return checkpoint


def check_tensors(checkpoint: Checkpoint, options: Options | None = None) -> HearModel:
    """Compare a checkpoint's tensors with a model of its config.

    Returns:
        That model, on the meta device: without storage.

    Raises:
        InputError: Tensors missing, left over or misshapen, or an option that does not fit.
    """
    # Before anything is built: the sizes in a config may be wrong, and far too large.
    sizes, positions = checkpoint.config.encoder, checkpoint.tensors.get("pos_embed")
    shape = [1, sizes.class_token + sizes.grid[0] * sizes.grid[1], sizes.width]
    blocks = {name.split(".")[1] for name in checkpoint.tensors if name.startswith("blocks.")}
    faults = []
    if positions is None or list(positions.shape) != shape:
        faults.append(f"pos_embed does not have the shape {shape}")
    if len(blocks) != sizes.depth:
        faults.append(f"they have {len(blocks)} blocks, not {sizes.depth}")
    if not faults:
        with torch.device("meta"):
            model = HearModel(checkpoint.config, options).float()  # whatever torch's default dtype is
        faults = _faults(checkpoint.tensors, model_state(model))
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"the tensors do not fit the config: {'; '.join(faults[:5])}{more}")
    return model


def _faults(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(f"{name} is not part of the model")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}")
        elif tensor.dtype not in (expected[name].dtype, HALF.get(expected[name].dtype)):
            faults.append(f"{name} is {tensor.dtype}, not {expected[name].dtype}")
    return faults


def model_parts(model: HearModel) -> dict[str, nn.Module]:
    """Return the modules with weights, by the prefix of their tensors' names."""
    parts = {"": model.encoder, "head.": model.head, "projector.": model.projector}
    return {prefix: part for prefix, part in parts.items() if part is not None}


def model_state(model: HearModel) -> dict[str, Tensor]:
    """Return a model's tensors by the names that they have in a checkpoint."""
    parts = model_parts(model).items()
    return {prefix + name: tensor for prefix, part in parts for name, tensor in part.state_dict().items()}


def _stored_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a Checkpoint that the config stores; malformed ones are ignored."""
    provenance, ignored, remarks = (config.training.get(key) for key in STORED)
    provenance = provenance if isinstance(provenance, dict) else {}
    return {
        "provenance": {str(k): v for k, v in provenance.items() if v in PROVENANCE},
        "ignored": tuple(map(str, ignored)) if isinstance(ignored, list) else (),
        "remarks": tuple(map(str, remarks)) if isinstance(remarks, list) else (),
    }
