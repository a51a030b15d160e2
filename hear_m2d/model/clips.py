"""What may be given as audio: a tensor (batch, samples) or a list of (samples,), checked without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hear_m2d.utils.errors import InputError

Audio = Tensor | Sequence[Tensor]

_BLOCK = 1 << 20  # samples looked at in one go: the check must not cost a copy of an hour of audio


def check_audio(audio: Audio) -> list[Tensor]:
    """Return the clips, each (samples,), as they were given; or say why they cannot be embedded.

    Raises:
        TypeError: Neither a tensor nor a list of tensors.
        ValueError: Wrong rank, integers, no samples, not a number or infinite.
    """
    if isinstance(audio, Sequence) and not isinstance(audio, str):
        if not audio:
            raise InputError("there is no audio: the list of clips is empty")
        if not all(isinstance(clip, Tensor) and clip.ndim == 1 for clip in audio):
            raise InputError("a list of clips holds one-dimensional torch tensors, (samples,)")
        for clip in audio:
            _check_samples(clip[None])
        return list(audio)
    if not isinstance(audio, Tensor):
        raise TypeError(f"audio is a torch tensor (batch, samples), not {type(audio).__name__}")
    if audio.ndim != 2:
        raise InputError(f"audio must be (batch, samples); its shape is {tuple(audio.shape)}")
    _check_samples(audio)
    return list(audio.unbind())


def _check_samples(audio: Tensor) -> None:
    """Check a tensor (batch, samples)."""
    if not audio.is_floating_point():
        raise InputError(
            f"audio must be floating point in [-1, 1], not {audio.dtype}: divide by the full scale"
        )
    if 0 in audio.shape:
        raise InputError(f"there is no audio: its shape is {tuple(audio.shape)}")
    # As float32: a large float64 becomes infinite.
    finite = [torch.isfinite(block.detach().float()).all() for block in _blocks(audio)]
    if not bool(torch.stack(finite).all()):
        raise InputError("audio holds NaN or infinite samples")


def _blocks(audio: Tensor) -> Iterator[Tensor]:
    """Cut (batch, samples) into pieces of bounded size."""
    rows = max(1, _BLOCK // audio.shape[1])
    for some in torch.split(audio, rows):
        yield from torch.split(some, _BLOCK, dim=1)
