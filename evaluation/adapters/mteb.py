"""The same model under two more benchmarks: `mteb` (its audio tasks, MAEB) and X-ARES (`xares`).

Neither package is imported before an adapter needs it; nothing here changes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hear_m2d.model.hear_model import HearModel

# What webdataset calls audio and libsndfile can read.
_SOUNDFILE_SUFFIXES = ("flac", "mp3", "ogg", "wav")


def mono(array: NDArray[Any] | Tensor | list[float], *, rate: int, sample_rate: int) -> Tensor:
    """Return audio as a model takes it: one channel, at its rate.

    Args:
        array: (samples,) or (channels, samples), floating point in [-1, 1].
        rate: Hertz of the array.
        sample_rate: Hertz wanted.

    Returns:
        (samples,), float32.

    Raises:
        ValueError: Integers, no samples, a bad rate, or another layout.
    """
    audio = np.asarray(array)
    if not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"audio is floating point in [-1, 1], not {audio.dtype}: divide by the full scale")
    if audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise ValueError(f"audio is (samples,) or (channels, samples); {audio.shape} looks transposed")
    if audio.ndim not in (1, 2) or audio.size == 0:
        raise ValueError(f"audio is (samples,) or (channels, samples); its shape is {audio.shape}")
    if not rate or rate <= 0:
        raise ValueError(f"the audio's sampling rate is {rate!r}; it is a positive number of hertz")
    audio = audio.mean(axis=0) if audio.ndim == 2 else audio
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate)
    if audio.size == 0:  # resampled to nothing: shorter than one sample
        audio = np.zeros(1)
    return torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))


class MtebEncoder:
    """A model behind mteb's encoder interface: ``mteb.evaluate(MtebEncoder(model), tasks)``.

    A clip's embedding is its scene embedding, at its own length: nothing is cut or padded.

    Args:
        model: From :func:`hear_m2d.load_model`, on the device to use.
        name: ``organisation/model``, under which mteb files the results.
        revision: Tells checkpoints of one name apart in mteb's cache of results; None: a checksum of weights,
            config and options.
    """

    def __init__(
        self, model: HearModel, name: str = "hear-m2d/checkpoint", revision: str | None = None
    ) -> None:
        if name.count("/") != 1:
            raise ValueError(f"name={name!r}; mteb wants organisation/model")
        self.model = model
        self.name = name
        self.revision = revision or fingerprint(model)
        self._meta: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb records about the model: a ``mteb.ModelMeta``."""
        if self._meta is None:
            from mteb.models.model_meta import ModelMeta, ScoringFunction

            parameters = sum(weight.numel() for weight in self.model.parameters())
            facts = {
                "name": self.name,
                "revision": self.revision,
                "modalities": ["audio"],
                "embed_dim": self.model.scene_embedding_size,
                "n_parameters": parameters,
                "memory_usage_mb": sum(w.nbytes for w in self.model.parameters()) / 2**20,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
            self._meta = ModelMeta.create_empty(overwrites=facts)
        return self._meta

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, show_progress_bar: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """Return one embedding per clip, (clips, size), float32.

        Args:
            inputs: Batches (a DataLoader) whose ``audio`` is a list of objects with ``array`` and
                ``sampling_rate``.
            show_progress_bar: Show one.
            kwargs: What mteb also says (task, split, prompt, batch size); it changes nothing.

        Raises:
            ValueError: A batch without audio, or audio that cannot be embedded.
        """
        from tqdm.auto import tqdm

        found = []
        for batch in tqdm(inputs, disable=not show_progress_bar, desc="embedding"):
            if "audio" not in batch:
                raise ValueError(f"only audio can be embedded; this batch holds {', '.join(sorted(batch))}")
            clips = [
                mono(item["array"], rate=item["sampling_rate"], sample_rate=self.model.sample_rate)
                for item in batch["audio"]
            ]
            found.append(self.model.scene_embeddings(clips).float().cpu().numpy())
        if not found:
            return np.zeros((0, self.model.scene_embedding_size), dtype=np.float32)
        return np.concatenate(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of every pair, (n, m)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of corresponding embeddings, (n,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


class XaresEncoder(nn.Module):
    """A model behind X-ARES's encoder interface: audio (batch, samples) → (batch, times, size).

    X-ARES averages over time for clips, and labels frames by ``hop_size_in_ms``. Columns are what the
    network computes and their mean is the scene embedding, so they are the default; timestamps are columns
    read at most 50 ms apart, for tasks that need a finer grid.

    Args:
        model: From :func:`hear_m2d.load_model`.
        frames: ``columns`` (one patch apart, 160 ms in the common networks) or ``timestamps``.

    Attributes:
        sampling_rate: Hertz, to which X-ARES resamples.
        output_dim: Features of one time.
        hop_size_in_ms: Milliseconds from one time to the next.
    """

    def __init__(self, model: HearModel, frames: str = "columns") -> None:
        super().__init__()
        if frames not in ("columns", "timestamps"):
            raise ValueError(f"frames={frames!r}; it is one of columns, timestamps")
        if frames == "columns" and model.options.output == "tokens":
            raise ValueError("output='tokens' has no frames in time. Use output='columns' or 'mean'")
        from hear_m2d.model.timestamps import frame_step

        frontend, patch = model.config.frontend, model.config.encoder.patch_size[1]
        step = patch if frames == "columns" else frame_step(patch, frontend.hop_ms)
        self.model = model
        self.frames = frames
        self.sampling_rate = model.sample_rate
        self.output_dim = model.timestamp_embedding_size
        self.hop_size_in_ms = step * frontend.hop_ms

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings in time of (batch, samples) or (samples,): (batch, times, output_dim)."""
        audio = audio[None] if audio.ndim == 1 else audio
        if self.frames == "columns":
            return self.model.features(audio)  # type: ignore[no-any-return]
        embeddings: Tensor = self.model.timestamp_embeddings(audio)[0]
        return embeddings


def decode_with_soundfile(key: str, data: bytes) -> tuple[Tensor, int] | None:
    """Decode a file of a webdataset as ``webdataset.torch_audio`` does, without FFmpeg.

    ``webdataset.torch_audio = decode_with_soundfile``, before X-ARES runs, makes it read flac, mp3, ogg and
    wav by libsndfile: torchaudio 2.9 and newer leave decoding to torchcodec, which needs FFmpeg.

    Args:
        key: The file's name in the archive.
        data: Its bytes.

    Returns:
        (channels, samples), float32, and the rate in hertz; None for what is no such file.
    """
    if key.rsplit(".", 1)[-1].lower() not in _SOUNDFILE_SUFFIXES:
        return None
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def fingerprint(model: HearModel) -> str:
    """Return 16 hexadecimal digits that differ where weights, config or options differ."""
    digest = hashlib.sha256()
    facts = {"config": model.config.to_json(), "options": asdict(model.options)}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, weight in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _unit(embeddings: Any) -> Tensor:
    """Return embeddings (n, size) or (size,) of length 1, as (n, size)."""
    found = torch.as_tensor(embeddings).float()
    return nn.functional.normalize(found[None] if found.ndim == 1 else found, dim=-1)
