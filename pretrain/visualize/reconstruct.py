"""The reconstruction of masked patches by an MSM-MAE, and its sound.

A log-mel has neither the phase nor the detail within a mel band, so that the sound differs from the
recording. Sources: Lee and Seung (2001), "Algorithms for Non-negative Matrix Factorization", for the
inverse mel; Griffin and Lim (1984) with the momentum of Perraudin et al. (2013), in torchaudio, for the
phase.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hear_m2d.model.encoder import patchify, unpatchify
from hear_m2d.model.frontend import LOG_EPS, LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.utils.errors import InputError

INVERSE_STEPS = 60
PHASE_STEPS = 64
SOUNDS = ("original", "round-trip", "visible", "reconstruction")
INSTALL = "pip install torchaudio"
_TINY = 1e-20  # far below LOG_EPS: a division by an empty frame stays finite


class Reconstruction(NamedTuple):
    """A window with masked patches reconstructed; spectrograms are standardized, (mels, frames).

    Attributes:
        panels: The original, the encoder's input (nan: masked), the reconstruction, its error, by title.
        error: Mean absolute error at the masked patches.
        baseline: The same for the easiest guess: the training mean, or each patch's own mean if the network
            learned standardized patches, whose mean and deviation are put back.
    """

    panels: dict[str, Tensor]
    error: float
    baseline: float


def reconstruct(mae: MSMMAE, x: Tensor, frames: int, *, index: int) -> Reconstruction:
    """Mask patches of a window, and reconstruct them with the decoder.

    ``x`` is the standardized log-mel, (1, 1, mels, frames in whole patches); the frames after the first
    ``frames`` are padding, which is not shown. The mask follows from the ``index`` of the file.
    """
    config = mae.encoder.config
    rows, columns = config.grid
    # A short clip is padded to the input's length, as in training.
    x = torch.nn.functional.pad(x, (0, columns * config.patch_size[1] - x.shape[-1]))
    predicted, mask = mae.reconstruct(x, mask_noise(0, index, 1, rows * columns))
    masked = mask.as_grid()[..., None].bool()  # (1, patches, 1)
    true = patchify(x, config.patch_size)
    easiest = true.mean(-1, keepdim=True).expand_as(true) if mae.norm_pix_loss else torch.zeros_like(true)

    def whole(patches: Tensor) -> Tensor:
        return unpatchify(patches, config.patch_size, rows)[0, 0, :, :frames]

    original, visible = whole(true), whole(torch.where(masked, torch.nan, true))
    merged = whole(torch.where(masked, predicted, true))
    error, hidden = (merged - original).abs(), visible.isnan()
    titles = ("original", "visible to the encoder", "reconstruction", "absolute error")
    return Reconstruction(
        dict(zip(titles, (original, visible, merged, error), strict=True)),
        error=float(error[hidden].mean()),
        baseline=float((whole(easiest) - original).abs()[hidden].mean()),
    )


def make_sounds(
    reconstruction: Reconstruction, model: HearModel, samples: Tensor
) -> tuple[dict[str, Tensor], float]:
    """Return the sounds of a reconstruction of a window's waveform, (samples,).

    Returns:
        Waveforms by file name: ``original``, ``round-trip`` (the original through log-mel and back),
        ``visible`` (masked patches silent) and ``reconstruction``, scaled by one factor into [-1, 1]; and the
        mean absolute difference of the round trip's log-mel in decibels.
    """
    original, visible, merged, _ = reconstruction.panels.values()
    config = model.config
    silence = (math.log(LOG_EPS) - config.mean) / config.std
    standardized = torch.stack([original, torch.nan_to_num(visible, nan=silence), merged])
    logmels = standardized * config.std + config.mean
    waves = sounds_of_log_mels(logmels, model.frontend)[:, : len(samples)]
    again = model.frontend(waves[:1])[0, :, : original.shape[-1]]
    decibels = 10 / math.log(10) * float((again - logmels[0]).abs().mean())
    loudest = max(1.0, *(float(wave.abs().max()) for wave in (samples, *waves)))
    return {name: wave / loudest for name, wave in zip(SOUNDS, (samples, *waves), strict=True)}, decibels


def why_no_sound() -> str:
    """Return why torchaudio cannot be used, with the line to type; empty if it can."""
    try:
        import torchaudio.functional  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("torchaudio"):
            return f"torchaudio is not installed. Type: {INSTALL}"
        raise
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch
        reason = " ".join(str(error).split())[:160]
        return (
            f"torchaudio cannot be used with torch {torch.__version__} ({reason}). "
            f"Install the torchaudio that belongs to it: {INSTALL}"
        )
    return ""


def invert_mel(mel: Tensor, filters: Tensor) -> Tensor:
    """Return a non-negative power spectrogram, (..., bins, frames), with the given mel bands.

    Multiplicative updates for the Kullback-Leibler divergence: they weigh a quiet band's error by its own
    size, as the logarithm does. torchaudio's ``InverseMelScale`` solves least squares and cuts off negative
    values: on real audio the log-mel of its result is off by 0.4 to 0.9 in the mean, of this by 0.003.

    Args:
        mel: Mel power, (..., mels, frames).
        filters: The filter bank, (mels, bins).
    """
    weight = filters.sum(0).clamp(min=_TINY)[:, None]  # (bins, 1); bins under no filter stay at zero
    spread = filters.T / weight
    power = spread @ mel
    for _ in range(INVERSE_STEPS):
        power = power * (spread @ (mel / (filters @ power + _TINY)))
    return power


def sounds_of_log_mels(logmels: Tensor, frontend: LogMelSpectrogram, *, steps: int = PHASE_STEPS) -> Tensor:
    """Return waveforms, (clips, samples), whose log-mel is close to the given ones, (clips, mels, frames).

    These are not standardized; the ``frontend`` has the filters, window and hop that made them. Griffin-Lim
    starts from a fixed random phase. A waveform goes from the center of the first frame to that of the last,
    and is long enough for the front end's reflection.

    Raises:
        InputError: torchaudio is missing or unusable; the message has the line to type.
    """
    if reason := why_no_sound():
        raise InputError(reason)
    from torchaudio.functional import griffinlim

    config = frontend.config
    power = invert_mel((logmels.float().exp() - LOG_EPS).clamp(min=0), frontend.filters)
    with torch.random.fork_rng():  # the caller's generators stay as they are, on every device
        torch.manual_seed(0)
        waves: Tensor = griffinlim(
            power,
            window=frontend.window,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
            win_length=config.n_fft,
            power=2.0,
            n_iter=steps,
            momentum=0.99,
            length=max((logmels.shape[-1] - 1) * config.hop_length, config.n_fft // 2 + 1),
            rand_init=True,
        )
    return waves
