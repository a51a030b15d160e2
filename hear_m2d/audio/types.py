"""The results of decoding: a sound, or an error that names the file and the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hear_m2d.utils.errors import InputError

Reason = Literal[
    "corrupt", "truncated", "empty", "non-finite", "not supported", "unreadable", "crash", "too slow"
]


class AudioError(InputError):
    """A file that cannot be decoded.

    Args:
        path: The file.
        reason: One or two words for the report.
        detail: The rest of the sentence.
    """

    def __init__(self, path: str | os.PathLike[str], reason: Reason, detail: str) -> None:
        super().__init__(f"{os.fspath(path)} is {reason}: {detail}")
        self.path = os.fspath(path)
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, Reason, str]]:
        return AudioError, (self.path, self.reason, self.detail)


class DecodeError(Exception):
    """Content that cannot be decoded; the error does not name the file.

    Args:
        reason: As for :class:`AudioError`.
        detail: As for :class:`AudioError`.
        undecodable: Whether libsndfile cannot read content of this kind; PyAV may.
    """

    def __init__(self, reason: Reason, detail: str, *, undecodable: bool = False) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail
        self.undecodable = undecodable


@dataclass(frozen=True)
class Piece:
    """Decoded samples at their own rate.

    Attributes:
        samples: Mono, (samples,), float32.
        rate: Hertz.
        channels: How many channels were averaged.
    """

    samples: NDArray[np.float32]
    rate: int
    channels: int


@dataclass(frozen=True)
class Sound:
    """A decoded file.

    Attributes:
        samples: The waveform, (samples,), float32, at the requested rate.
        file_rate: The file's own rate, hertz.
        channels: How many channels were averaged.
    """

    samples: NDArray[np.float32]
    file_rate: int
    channels: int
