"""A path on this machine → a checkpoint. What lies there follows from its first bytes, not from its suffix."""

from __future__ import annotations

import os
from pathlib import Path

from hear_m2d.checkpoint import Checkpoint, read_checkpoint
from hear_m2d.published import read_published


def read_local(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint by its path: our own ``.safetensors``, or a published ``.pth``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a .safetensors or .pth file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a .safetensors or .pth file")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{path} is empty")
    pickled = start.startswith((b"PK", b"\x80")) and not _is_safetensors(start)
    return read_published(path) if pickled else read_checkpoint(path)


def _is_safetensors(start: bytes) -> bool:
    """Tell by the header's length in eight bytes (small: its upper half is zero) and the JSON after it.

    The length's own first bytes may well be those of a zip or a pickle.
    """
    return start[4:9] == bytes(4) + b"{"
