"""The model of `hear-m2d embed`: batches of decoded clips → embeddings or failures.

The embedding of a clip does not depend on the other clips of its batch; batches only fill the forward passes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hear_m2d.audio import Sound
from hear_m2d.checkpoint.build import model_of
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.embed.decode import Decoded
from hear_m2d.embed.inputs import Clip, Failure
from hear_m2d.model.config import Options
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.device import pick_device
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256
from hear_m2d.utils.version import installed_version

WHAT = ("scene", "timestamps", "both")
# Seconds of audio in a batch: enough windows for several passes; a killed run loses at most one batch.
_BATCH_S = {"cpu": 120.0, "cuda": 600.0}
_BATCH_CLIPS = 512


@dataclass(frozen=True)
class ModelSpec:
    """The model, and what to compute.

    Attributes:
        name: As for :func:`hear_m2d.load_model`.
        what: ``scene``, ``timestamps`` or ``both``.
        options: As for :func:`hear_m2d.load_model`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
    """

    name: str
    what: str = "scene"
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise InputError(f"what must be one of {', '.join(WHAT)}, got {self.what!r}")
        Options.parse(self.options)


@dataclass(frozen=True)
class Embedding:
    """One clip's embeddings; arrays that were not requested are None."""

    clip: Clip
    file_rate: int  # sample rate of the file, hertz
    duration_s: float
    scene: NDArray[np.float32] | None  # (features,)
    timestamps: NDArray[np.float32] | None  # (n, features)
    times_ms: NDArray[np.float32] | None  # (n,), milliseconds


class Embedder:
    """A loaded model on its device."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.device = pick_device(spec.device)
        checkpoint = read_weights(spec.name)
        self.path = checkpoint.path
        self.model: HearModel = model_of(checkpoint, Options.parse(spec.options)).to(self.device)
        self.sample_rate = self.model.sample_rate
        # With statistics of the batch, a clip's embedding would depend on the other clips.
        alone = self.model.options.normalization == "batch"
        self.batch_s = 0.0 if alone else _BATCH_S.get(self.device.type, _BATCH_S["cuda"])

    def metadata(self) -> dict[str, Any]:
        """Return what identifies the embeddings, and describes them: JSON."""
        defaults = dataclasses.asdict(Options())
        chosen = dataclasses.asdict(self.model.options)
        return {
            "format": 1,
            "model": self.spec.name,
            "sha256": file_sha256(self.path),
            "options": json.loads(json.dumps({k: v for k, v in chosen.items() if v != defaults[k]})),
            "sample_rate": self.sample_rate,
            "embedding_size": self.model.scene_embedding_size,
            "version": installed_version(),
        }

    def batches(self, clips: Iterable[Decoded]) -> Iterator[list[Decoded]]:
        """Group clips, in their order; failed clips are included and do not count."""
        batch: list[Decoded] = []
        seconds, good = 0.0, 0
        for decoded in clips:
            batch.append(decoded)
            if isinstance(decoded.result, Sound):
                seconds += len(decoded.result.samples) / self.sample_rate
                good += 1
            if seconds > self.batch_s or good >= _BATCH_CLIPS:
                yield batch
                batch, seconds, good = [], 0.0, 0
        if batch:
            yield batch

    def embed(self, batch: Sequence[Decoded]) -> list[Embedding | Failure]:
        """Return each clip's embeddings, or why it has none, in the same order."""
        results = iter(self._embed([decoded for decoded in batch if isinstance(decoded.result, Sound)]))
        return [d.result if isinstance(d.result, Failure) else next(results) for d in batch]

    def _embed(self, batch: Sequence[Decoded]) -> list[Embedding | Failure]:
        if not batch:
            return []
        try:
            return self._run(batch)
        except InputError as error:
            reason, detail = "not embedded", str(error)
        except (MemoryError, RuntimeError) as error:
            # torch has no exception class for a CPU without memory
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            reason, detail = "too large", " ".join(str(error).split()) or "out of memory"
        # Outside of `except`: the traceback keeps the tensors of the failed pass alive.
        if len(batch) > 1:  # one clip fails, or together they need too much memory
            return [result for decoded in batch for result in self._embed([decoded])]
        return [Failure(batch[0].clip.name, reason, detail)]

    def _run(self, batch: Sequence[Decoded]) -> list[Embedding | Failure]:
        sounds = [decoded.result for decoded in batch if isinstance(decoded.result, Sound)]
        audio = [torch.from_numpy(sound.samples) for sound in sounds]
        scenes: Any = [None] * len(audio)
        frames: Any = scenes
        times: Any = scenes
        if self.spec.what == "scene":
            scenes = self.model.scene_embeddings(audio).cpu()
        elif self.spec.what == "timestamps":
            frames, times = self.model.timestamp_embeddings(audio)
        else:
            scenes, frames, times = self.model.scene_and_timestamp_embeddings(audio)
        results: list[Embedding | Failure] = []
        for decoded, sound, *tensors in zip(batch, sounds, scenes, frames, times, strict=True):
            arrays = [None if tensor is None else tensor.cpu().numpy() for tensor in tensors]
            if all(array is None or np.isfinite(array).all() for array in arrays):
                duration_s = len(sound.samples) / self.sample_rate
                results.append(Embedding(decoded.clip, sound.file_rate, duration_s, *arrays))
            else:
                detail = "its samples are so loud that the embedding is not finite"
                results.append(Failure(decoded.clip.name, "not embedded", detail))
        return results
