"""Scene embeddings of a labelled set, kept on disk by what they follow from: the weights and the files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hear_m2d.audio import read_audio
from hear_m2d.checkpoint.format import read_tensors, write_tensors
from hear_m2d.evaluation.linear.datasets import LabelledSet
from hear_m2d.model.hear_model import HearModel

logger = logging.getLogger(__name__)

KEY = "hear_m2d_embeddings"
TOGETHER_S, TOGETHER = 120.0, 64  # most seconds, and most clips, that are embedded at once


def embed_task(
    model: HearModel,
    labelled: LabelledSet,
    *,
    cache: Path | None = None,
    tick: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Return the scene embedding of each clip, (clips, model.scene_embedding_size), in the set's order.

    Args:
        model: In eval mode, on its device.
        labelled: The clips.
        cache: A folder for embeddings; what is there already is not computed again.
        tick: Called with the number of clips that were just embedded.

    Raises:
        ValueError: A file that does not decode.
        OSError: A file that cannot be read, or a cache that cannot be written.
    """
    path = cache and cache / f"{cache_key(model, labelled)}.safetensors"
    if path and path.exists():
        try:
            kept: NDArray[np.float32] = read_tensors(path, KEY)[0]["scenes"].numpy()
            return kept
        except (ValueError, KeyError) as error:
            logger.warning("%s: its embeddings are made again", error)
    scenes = np.empty((len(labelled.clips), model.scene_embedding_size), np.float32)
    done = 0
    for batch in _batches(labelled, model.sample_rate):
        scenes[done : done + len(batch)] = model.scene_embeddings(batch).float().cpu().numpy()
        done += len(batch)
        if tick:
            tick(len(batch))
    if path:
        write_tensors(path, {"scenes": torch.from_numpy(scenes)}, {KEY: {"set": labelled.name}})
    return scenes


def _batches(labelled: LabelledSet, sample_rate: int) -> Iterator[list[torch.Tensor]]:
    batch: list[torch.Tensor] = []
    for clip in labelled.clips:
        batch.append(torch.from_numpy(read_audio(clip.path, sample_rate)))
        if len(batch) == TOGETHER or sum(map(len, batch)) >= TOGETHER_S * sample_rate:
            yield batch
            batch = []
    if batch:
        yield batch


def cache_key(model: HearModel, labelled: LabelledSet) -> str:
    """Return a SHA-256 of the weights and settings, and of the names, sizes and dates of the files."""
    total = hashlib.sha256(weights_digest(model).encode())
    for clip in labelled.clips:
        facts = clip.path.stat()
        line = f"{clip.path.absolute()} {facts.st_size} {facts.st_mtime_ns}\n"
        total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()


def weights_digest(model: HearModel) -> str:
    """Return a SHA-256 of all that embeddings follow from but the audio."""
    config = {name: value for name, value in model.config.to_json().items() if name != "training"}
    facts = {"hear_m2d": version("hear-m2d"), "config": config, "options": asdict(model.options)}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
