"""Scene embeddings of a labeled set by any HEAR module, kept on disk in parts; parts that exist are read.

The folder's name is a digest of everything that the embeddings depend on: the weights, the options, and the
files' names, sizes and dates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.audio import read_audio
from hear_m2d.checkpoint.build import weights_digest
from hear_m2d.checkpoint.format import read_tensors, write_tensors
from hear_m2d.evaluation.hear.module import (
    ATTRIBUTES,
    FUNCTIONS,
    check_module,
    import_module,
    resolve_model,
    sha256,
)
from hear_m2d.evaluation.linear.datasets import Clip, LabeledSet
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

KEY = "hear_m2d_embeddings"
MAX_BATCH_S, MAX_BATCH_CLIPS = 120.0, 64  # seconds and clips that are embedded in one call
PART_CLIPS = 512
CROP_SEED = 42  # the seed of the published linear evaluation


@dataclass(frozen=True)
class Embedder:
    """Scene embeddings of one model.

    Attributes:
        sample_rate: Hertz.
        size: Features of an embedding.
        embed: Takes clips, each (samples,), and returns (clips, size).
        digest: Returns a text that is the same only for the same weights and options.
    """

    sample_rate: int
    size: int
    embed: Callable[[Sequence[Tensor]], Tensor]
    digest: Callable[[], str]


def model_embedder(model: HearModel) -> Embedder:
    """Return the embedder of a model of ours, in eval mode, on its device."""
    return Embedder(
        model.sample_rate, model.scene_embedding_size, model.scene_embeddings, lambda: weights_digest(model)
    )


def module_embedder(
    name: str, path: Path | None, *, options: Mapping[str, Any], device: torch.device
) -> Embedder:
    """Return the embedder of any module with the HEAR API.

    Args:
        name: The module.
        path: What its ``load_model`` gets, or a name that the module's ``resolve_model`` knows; None gives it
            nothing.
        options: Keyword arguments of its ``load_model``.
        device: Where to embed.

    Raises:
        InputError: The module cannot be imported, or lacks a part of the API, or ``path`` does not exist.
    """
    path = None if path is None else resolve_model(name, path)
    try:
        module = import_module(name)
    except ImportError as error:
        raise InputError(f"the module {name} cannot be imported: {error}") from error
    model = check_module(name, path, options, functions=FUNCTIONS[:2], attributes=ATTRIBUTES[:2])
    if isinstance(model, torch.nn.Module):
        model = model.to(device).eval()

    def embed(clips: Sequence[Tensor]) -> Tensor:
        scenes = []
        for _, group in itertools.groupby(clips, key=len):  # the API takes clips of one length
            with torch.no_grad():
                scenes.append(module.get_scene_embeddings(torch.stack(list(group)).to(device), model))
        return torch.cat(scenes)

    def digest() -> str:
        source = getattr(module, "__file__", None)
        sums = [path and sha256(path), source and sha256(Path(source))]
        return json.dumps([name, *sums, dict(options)], sort_keys=True)

    return Embedder(model.sample_rate, model.scene_embedding_size, embed, digest)


def embed_task(
    model: HearModel | Embedder,
    labeled: LabeledSet,
    *,
    cache: Path | None = None,
    tick: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Return the scene embedding of each clip, (clips, features), in the set's order.

    A set with a unit length has longer clips cut to it (training and valid clips at a random start, which is
    a function of the file's name, others at their beginning) and shorter clips filled with zeros at the end.

    Args:
        model: In eval mode, on its device.
        labeled: The clips.
        cache: A folder for embeddings; parts that exist there are read.
        tick: Called with the number of clips that were just embedded.

    Raises:
        InputError: A file does not decode.
        OSError: A file cannot be read, or the cache cannot be written.
    """
    embedder = model if isinstance(model, Embedder) else model_embedder(model)
    folder = cache and cache / cache_key(embedder, labeled)
    scenes = np.empty((len(labeled.clips), embedder.size), np.float32)
    for start in range(0, len(scenes), PART_CLIPS):
        part = slice(start, start + PART_CLIPS)
        path = folder and part_path(folder, start)
        kept = _read_part(path) if path else None
        if kept is not None and kept.shape == scenes[part].shape:
            scenes[part] = kept
            continue
        done = start
        for batch in _batches(labeled, labeled.clips[part], embedder.sample_rate):
            scenes[done : done + len(batch)] = embedder.embed(batch).float().cpu().numpy()
            done += len(batch)
            if tick:
                tick(len(batch))
        if path:
            write_tensors(path, {"scenes": torch.from_numpy(scenes[part])}, {KEY: {"set": labeled.name}})
    return scenes


def part_path(folder: Path, start: int) -> Path:
    """Return the file of the part that begins with a clip."""
    return folder / f"part-{start // PART_CLIPS:05d}.safetensors"


def _read_part(path: Path) -> NDArray[np.float32] | None:
    """Return a part's embeddings; None where they must be computed."""
    if not path.exists():
        return None
    try:
        kept: NDArray[np.float32] = read_tensors(path, KEY)[0]["scenes"].numpy()
    except (ValueError, KeyError) as error:
        logger.warning("%s: its embeddings are computed again", error)
        return None
    return kept


def _batches(labeled: LabeledSet, clips: Sequence[Clip], sample_rate: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for clip in clips:
        audio = torch.from_numpy(read_audio(clip.path, sample_rate))
        if labeled.unit_s is not None:
            start = crop_position(clip) if clip.split in ("train", "valid") else 0.0
            audio = fit_length(audio, round(labeled.unit_s * sample_rate), start)
        batch.append(audio)
        if len(batch) == MAX_BATCH_CLIPS or sum(map(len, batch)) >= MAX_BATCH_S * sample_rate:
            yield batch
            batch = []
    if batch:
        yield batch


def crop_position(clip: Clip) -> float:
    """Return where to cut a longer clip, from 0 (its beginning) to 1, a function of its name."""
    digest = hashlib.sha256(f"{CROP_SEED} {clip.name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "little") / 2**32


def fit_length(audio: Tensor, samples: int, position: float) -> Tensor:
    """Return ``samples`` samples of a clip, (samples,): cut from a longer one, filled with zeros at the end.

    Args:
        audio: (any number of samples,).
        samples: How many are wanted.
        position: Of the cut, from 0 (the beginning) to 1 (the end).
    """
    if len(audio) < samples:
        return torch.nn.functional.pad(audio, (0, samples - len(audio)))
    start = min(int(position * (len(audio) - samples + 1)), len(audio) - samples)
    return audio[start : start + samples]


def cache_key(model: HearModel | Embedder, labeled: LabeledSet) -> str:
    """Return a SHA-256 of the weights and options, the cut, and the names, sizes and dates of the files."""
    embedder = model if isinstance(model, Embedder) else model_embedder(model)
    total = hashlib.sha256(embedder.digest().encode())
    for clip in labeled.clips:
        facts = clip.path.stat()
        line = f"{clip.path.absolute()} {facts.st_size} {facts.st_mtime_ns}"
        if labeled.unit_s is not None:
            line += f" {labeled.unit_s} {clip.split in ('train', 'valid')}"
        total.update(f"{line}\n".encode(errors="surrogateescape"))
    return total.hexdigest()
