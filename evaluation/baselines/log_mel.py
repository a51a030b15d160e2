"""Log-mel statistics as a HEAR module: mean and standard deviation over time, no network.

    hear-m2d evaluate --module hear_m2d.evaluation.baselines.log_mel --tasks-dir tasks --out scores

A scene embedding is the mean and the standard deviation of each mel bin over the clip, (2 * mels,); a
timestamp embedding is the mean over four frames, 40 ms apart, (mels,). The front end is that of the models.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from hear_m2d.model.frontend import FrontendConfig, LogMelSpectrogram

FRAMES = 4  # frames in a timestamp embedding


class LogMelStatistics(nn.Module):
    """The front end alone.

    Args:
        sample_rate: Of the audio, in hertz.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.frontend = LogMelSpectrogram(FrontendConfig.for_rate(sample_rate))
        self.sample_rate = sample_rate
        self.scene_embedding_size = 2 * self.frontend.config.n_mels
        self.timestamp_embedding_size = self.frontend.config.n_mels

    def forward(self, audio: Tensor) -> Tensor:
        """Return the log-mel of ``audio`` (batch, samples), as (batch, mels, frames)."""
        log_mel: Tensor = self.frontend(audio)
        return log_mel


def load_model(model_file_path: str | os.PathLike[str] = "", *, sample_rate: int = 16000) -> LogMelStatistics:
    """Return the baseline.

    Args:
        model_file_path: Not used: there are no weights.
        sample_rate: Of the audio, in hertz: 16000 or 32000, the rates that have a front end.
    """
    return LogMelStatistics(sample_rate).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: LogMelStatistics) -> Tensor:
    """Return mean and standard deviation over time of ``audio`` (batch, samples), as (batch, 2 * mels)."""
    log_mel = model(audio)
    return torch.cat([log_mel.mean(2), log_mel.std(2, correction=0)], dim=1)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: LogMelStatistics) -> tuple[Tensor, Tensor]:
    """Return the means of every four frames of ``audio`` (batch, samples), and their centers.

    Returns:
        Embeddings (batch, n, mels), and milliseconds (batch, n), both float32. Frames after the last four
        are left out; a clip of fewer than four frames has one embedding.
    """
    log_mel = model(audio)
    count = max(log_mel.shape[2] // FRAMES, 1)
    groups = log_mel[:, :, : count * FRAMES].unflatten(2, (count, -1))
    centers = torch.arange(count, dtype=torch.float64) * FRAMES + (FRAMES - 1) / 2
    times = (centers * model.frontend.config.hop_ms).float().to(audio.device)
    return groups.mean(3).transpose(1, 2).contiguous(), times.expand(len(audio), -1)
