"""Compare an exported file with the eager model, for several lengths, batches and sounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hear_m2d.model.hear_model import HearModel

TOLERANCE = 1e-4  # largest absolute difference to the eager model

Runtime = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Agreement:
    """The largest absolute differences between an exported file and the eager model; NaN if one was NaN."""

    inputs: int  # how many clips were compared
    scene: float
    columns: float

    @property
    def holds(self) -> bool:
        """Whether every difference is a number, and small enough."""
        return self.scene <= TOLERANCE and self.columns <= TOLERANCE  # NaN is not


def compare(run: Runtime, model: HearModel) -> Agreement:
    """Run the exported and the eager model over several lengths; return the largest differences."""
    if model.training or any(weight.device.type != "cpu" for weight in model.parameters()):
        model = copy.deepcopy(model).cpu().eval()
    worst = {"scene": 0.0, "columns": 0.0}
    inputs = 0
    for samples in check_lengths(model):
        sounds = check_sounds(samples, sample_rate=model.sample_rate)
        for batch in (sounds[:3], sounds[3:]):
            expected = (model.scene_embeddings(batch), model.columns(batch))
            with torch.no_grad():
                exported = run(batch)
            for name, a, b in zip(worst, expected, exported, strict=True):
                difference = float((a - b).abs().max()) if a.shape == b.shape else math.nan
                worst[name] = float(np.maximum(worst[name], difference))  # NaN if one is NaN
            inputs += len(batch)
    return Agreement(inputs=inputs, **worst)


def check_lengths(model: HearModel) -> list[int]:
    """Return lengths, in samples, around each length where the graph could be wrong."""
    frontend, encoder = model.config.frontend, model.config.encoder
    hop, half = frontend.hop_length, frontend.n_fft // 2
    patch, window = encoder.patch_size[1] * hop, encoder.grid[1] * encoder.patch_size[1] * hop
    lengths = {1, 2, half, half + 1, half + 2, patch - hop, patch}
    lengths |= {window - hop - 1, window - hop, window, window + hop, 2 * window + patch + 7}
    return sorted(length for length in lengths if length > 0)


def check_sounds(samples: int, *, sample_rate: int) -> Tensor:
    """Return a chirp, silence, a click and noise, (4, samples)."""
    generator = torch.Generator().manual_seed(samples)
    time = torch.arange(samples) / sample_rate
    sounds = torch.zeros(4, samples)
    # A pure tone at full scale would measure torch.stft instead: between its lines, where the log-mel is near
    # its floor, single precision leaves the eager model itself 1e-4 off.
    sounds[0] = 0.2 * torch.sin(2 * math.pi * (50 + 0.2 * sample_rate * time) * time)
    sounds[2, samples // 2] = 1.0
    sounds[3] = 0.1 * torch.randn(samples, generator=generator).clamp(-1, 1)
    return sounds
