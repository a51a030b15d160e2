"""The log-mel spectrogram: waveform (batch, samples) → (batch, mels, frames), in plain torch.

25 ms periodic Hann window, 10 ms hop, centered with reflection, power spectrum, Slaney mel scale with
area-normalized filters, natural logarithm of (mel + float32 epsilon): the front end of M2D and MSM-MAE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hear_m2d.utils.errors import InputError, check_integers

LOG_EPS = 1.1920929e-07  # float32's machine epsilon: digital silence becomes ln(eps) = -15.942385


@dataclass(frozen=True)
class FrontendConfig:
    """Every number of the log-mel.

    Attributes:
        sample_rate: In hertz.
        n_fft: Samples of the window and of the transform.
        hop_length: Samples between frames.
        n_mels: Mel bins.
        f_min: Lowest edge of the filter bank, hertz.
        f_max: Highest edge of the filter bank, hertz.
    """

    sample_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    n_mels: int = 80
    f_min: float = 50.0
    f_max: float = 8000.0

    def __post_init__(self) -> None:
        sizes = {"n_fft": self.n_fft, "hop_length": self.hop_length, "n_mels": self.n_mels}
        check_integers(minimum=1, sample_rate=self.sample_rate, **sizes)
        if self.sample_rate > 1_000_000 or max(self.n_fft, self.hop_length) > self.sample_rate:
            raise InputError(f"a window must have at most a second, and the rate be at most 1 MHz: {self}")
        if self.n_mels > self.n_fft // 2 + 1 or self.n_mels * self.n_fft > 10**7:
            raise InputError(f"{self.n_mels} mel bins are too many for a transform of {self.n_fft} samples")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"f_min {self.f_min} and f_max {self.f_max} Hz must be ordered and lie within half of "
                f"{self.sample_rate} Hz"
            )

    @staticmethod
    def for_rate(sample_rate: int) -> FrontendConfig:
        """Return the published settings for a sample rate: 25 ms windows, 10 ms hop, 80 mels from 50 Hz.

        Whole samples: at 22,050 Hz the hop is 220 of them, 9.977 ms.
        """
        return FrontendConfig(
            sample_rate=sample_rate,
            n_fft=sample_rate // 40,
            hop_length=sample_rate // 100,
            f_max=sample_rate / 2,
        )

    def at_rate(self, sample_rate: int) -> FrontendConfig:
        """Return the same front end for another sample rate: window and hop of the same duration.

        The mel bins and the lowest edge stay; the highest edge follows where it was half of the rate.
        """
        full = self.f_max == self.sample_rate / 2
        return dataclasses.replace(
            self,
            sample_rate=sample_rate,
            n_fft=self.n_fft * sample_rate // self.sample_rate,
            hop_length=self.hop_length * sample_rate // self.sample_rate,
            f_max=sample_rate / 2 if full else min(self.f_max, sample_rate / 2),
        )

    @property
    def hop_ms(self) -> float:
        """Milliseconds between frames."""
        return 1000.0 * self.hop_length / self.sample_rate

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of that many samples."""
        return max(samples, self.n_fft // 2 + 1) // self.hop_length + 1


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    linear = hz * 3.0 / 200.0
    log = 15.0 + np.log(np.maximum(hz, 1e-10) / 1000.0) * (27.0 / math.log(6.4))
    return np.where(hz >= 1000.0, log, linear)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel >= 15.0, 1000.0 * np.exp((mel - 15.0) * (math.log(6.4) / 27.0)), mel * 200.0 / 3.0)


def mel_edges(config: FrontendConfig) -> NDArray[np.float64]:
    """Return hertz, (mels + 2,): bin i rises from edge i, is centered on edge i + 1, falls to i + 2."""
    low, high = _hz_to_mel(np.array([config.f_min, config.f_max]))
    return _mel_to_hz(np.linspace(low, high, config.n_mels + 2))


def mel_filters(config: FrontendConfig) -> Tensor:
    """Return the area-normalized triangular filter bank, (mels, n_fft // 2 + 1), float32."""
    bins = np.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1)
    edges = mel_edges(config)
    rising = (bins[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


class LogMelSpectrogram(nn.Module):
    """Waveform (batch, samples) in [-1, 1] → log-mel (batch, mels, frames), always float32.

    A waveform shorter than ``n_fft // 2 + 1`` samples gets zeros appended first, because reflection
    needs that many. Source: the front end described in the M2D and MSM-MAE papers (settings).
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FrontendConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontendConfig()
        # Not in the state dict: they are computed from the config, on the CPU also under a meta device.
        window = torch.hann_window(self.config.n_fft, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", mel_filters(self.config), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Return the log-mel of ``audio`` (batch, samples), as (batch, mels, frames)."""
        half = self.config.n_fft // 2
        audio = audio.float()
        if (short := half + 1 - audio.shape[-1]) > 0:
            audio = nn.functional.pad(audio, (0, short))
        return self.of_segments(nn.functional.pad(audio, (half, half), mode="reflect"))

    def segment(self, clip: Tensor, first: int, frames: int) -> Tensor:
        """Return the samples under some frames of one clip, for :meth:`of_segments`.

        ``clip`` is (samples,). Frames before and past the clip have no meaning. The result is
        ((frames - 1) * hop_length + n_fft,), reflected at the clip's ends, float32.
        """
        config = self.config
        if (short := config.n_fft // 2 + 1 - len(clip)) > 0:
            clip = nn.functional.pad(clip, (0, short))
        start = first * config.hop_length - config.n_fft // 2
        stop = start + (frames - 1) * config.hop_length + config.n_fft
        if start >= 0 and stop <= len(clip):
            return clip[start:stop].float()
        index = torch.arange(start, stop, device=clip.device).abs()
        last = len(clip) - 1
        index = (last - (last - index).abs()).clamp(min=0)
        return clip[index].float()

    def of_segments(self, segments: Tensor) -> Tensor:
        """Return the log-mel of samples already extended by half a window on each side.

        (batch, (frames - 1) * hop_length + n_fft) → (batch, mels, frames).
        """
        # Mixed precision must not reach the front end: a bfloat16 mel product is off by percents.
        with torch.autocast(segments.device.type, enabled=False):
            spectrum = torch.stft(
                segments,
                n_fft=self.config.n_fft,
                hop_length=self.config.hop_length,
                window=self.window,
                center=False,
                return_complex=True,
            )  # (batch, n_fft // 2 + 1, frames)
            power = spectrum.real.square() + spectrum.imag.square()
            return torch.log(self.filters @ power + LOG_EPS)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMelSpectrogram:
        """Follow a move to another device, but never to another precision: `model.half()` stops here."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.filters.dtype != torch.float32:
            exact = LogMelSpectrogram(self.config)
            self.window = exact.window.to(self.window.device)
            self.filters = exact.filters.to(self.filters.device)
        return self
