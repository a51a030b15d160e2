"""A model for X-ARES (`xares`), which is not imported here."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from hear_m2d.model.hear_model import HearModel
from hear_m2d.model.timestamps import frame_step
from hear_m2d.utils.errors import InputError

SOUNDFILE_SUFFIXES = ("flac", "mp3", "ogg", "wav")
"""Suffixes that webdataset treats as audio and libsndfile can read."""


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
            raise InputError(f"frames must be columns or timestamps, got {frames!r}")
        if frames == "columns" and model.options.output == "tokens":
            raise InputError("output='tokens' has no frames in time: use output='columns' or 'mean'")
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
    wav with libsndfile: torchaudio 2.9 and newer leave decoding to torchcodec, which needs FFmpeg.

    Args:
        key: The file's name in the archive.
        data: Its bytes.

    Returns:
        (channels, samples), float32, and the rate in hertz; None for any other file.
    """
    if key.rsplit(".", 1)[-1].lower() not in SOUNDFILE_SUFFIXES:
        return None
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate
