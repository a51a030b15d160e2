"""Audio embeddings from masked spectrogram modelling, through the HEAR API.

    model = hear_m2d.load_model("checkpoint.safetensors")
    scene = hear_m2d.get_scene_embeddings(audio, model)
    embeddings, milliseconds = hear_m2d.get_timestamp_embeddings(audio, model)

Source: https://hearbenchmark.com/hear-api.html (HEAR common API).
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from torch import Tensor

from hear_m2d._checkout import explain_missing_parts
from hear_m2d.checkpoint.format import Checkpoint, build_model, rate_conflict
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.config import Options
from hear_m2d.model.hear_model import Audio, HearModel

logger = logging.getLogger(__name__)

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

explain_missing_parts()


def load_model(model_file_path: str | os.PathLike[str] = "", **options: Any) -> HearModel:
    """Load a checkpoint, in eval mode, on the CPU.

    Args:
        model_file_path: A path (our ``.safetensors``, a published ``.pth``, a zip or folder with one), a name
            of a registry, ``hf://owner/repo``, or an address: see
            :func:`hear_m2d.checkpoint.resolve.read_weights`.
        options: See :class:`hear_m2d.model.config.Options`; what is given by hand overrides the file.

    Returns:
        The model; ``model.to(device)`` moves it.

    Raises:
        FileNotFoundError: No such file or name; the nearest names are shown.
        ConnectionError: What must be downloaded cannot be reached.
        ValueError: Not a checkpoint, an unknown option (the nearest is named), or a value out of range.
    """
    chosen = Options.parse(options)  # before a large file is read
    return model_of(read_weights(model_file_path), chosen)


def model_of(checkpoint: Checkpoint, chosen: Options) -> HearModel:
    """Build the model of a checkpoint that was read, and say what its file leaves open.

    Args:
        checkpoint: From :func:`hear_m2d.checkpoint.resolve.read_weights`.
        chosen: What was given by hand.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        ValueError: An option that does not fit the checkpoint.
    """
    model = build_model(checkpoint, chosen)
    for option, guess in checkpoint.guessed.items():
        if getattr(chosen, option) is None:
            warnings.warn(f"{checkpoint.path}: {guess}", stacklevel=3)  # of whoever called the caller
    if conflict := rate_conflict(checkpoint, chosen.sample_rate):
        warnings.warn(f"{checkpoint.path}: {conflict}", stacklevel=3)
    for note in checkpoint.notes:
        if note not in checkpoint.guessed.values():
            logger.info("%s: %s", checkpoint.path, note)
    return model


def get_scene_embeddings(audio: Audio, model: HearModel) -> Tensor:
    """Return one embedding per clip, without gradients.

    Args:
        audio: (batch, samples) in [-1, 1] at ``model.sample_rate``, or a list of (samples,) of any lengths.
        model: From :func:`load_model`.

    Returns:
        (batch, model.scene_embedding_size), float32.

    Raises:
        ValueError: Audio that cannot be embedded; the message says why.
    """
    return model.scene_embeddings(audio)


def get_timestamp_embeddings(audio: Audio, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings at regular times, at most 50 ms apart, without gradients.

    Args:
        audio: (batch, samples) in [-1, 1] at ``model.sample_rate``, or a list of (samples,) of any lengths.
        model: From :func:`load_model`.

    Returns:
        Embeddings (batch, n, model.timestamp_embedding_size), and the centre of each in milliseconds,
        (batch, n); both float32. For a list of clips, two lists with a tensor each: (n, size) and (n,).

    Raises:
        ValueError: Audio that cannot be embedded; the message says why.
    """
    return model.timestamp_embeddings(audio)
