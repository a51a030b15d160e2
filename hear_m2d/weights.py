"""Names → checkpoints: what `load_model` was given, found and read, whoever wrote it."""

from __future__ import annotations

import os

from hear_m2d.checkpoint import Checkpoint
from hear_m2d.local import read_local

NO_DEFAULT = (
    "there is no default checkpoint yet. Make one (hear-m2d pretrain --recipe laptop_m2d --data AUDIO_FOLDER "
    "--out RUN), or use one you have, and give its path: load_model('RUN/checkpoint.safetensors')"
)


def read_weights(name: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint by its path: see :func:`hear_m2d.local.read_local`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No name, or not a checkpoint.
    """
    if not os.fspath(name):
        raise ValueError(NO_DEFAULT)
    return read_local(name)
