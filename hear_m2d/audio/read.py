"""Decode audio files: any common format, any rate, any channels → mono float32.

Decoding is strict: a file that cannot be read whole is an :class:`AudioError` that names the file and says
why. Callers that read many files catch it, count it and go on. libsndfile decodes what it can read whole.
PyAV (FFmpeg) decodes the rest, in a process of its own.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import soxr
from numpy.typing import NDArray

from hear_m2d.audio import pyav, sndfile
from hear_m2d.audio.formats import (
    AIFF,
    CAF,
    FLAC,
    MP3,
    OGG,
    WAV,
    Format,
    cut_chunk,
    format_of,
    joined_starts,
    not_audio,
)
from hear_m2d.audio.mp3 import Mp3Link, mp3_links, skip_tags
from hear_m2d.audio.ogg import ogg_links
from hear_m2d.audio.types import AudioError, DecodeError, Piece, Sound

_MP3_SUFFIXES = (".mp1", ".mp2", ".mp3", ".mpga")
_MP3_SLACK = 2 * 1152  # samples: largest delay and padding of decoders
_SNDFILE = (OGG, FLAC, WAV, AIFF, CAF)  # what libsndfile may be able to decode
_HEAD = 4096  # bytes that are read to find the format


def read_audio(
    path: str | os.PathLike[str], sample_rate: int, *, content: bytes | None = None
) -> NDArray[np.float32]:
    """Decode a whole file, average its channels and resample it.

    Args:
        path: A file in any format of libsndfile, or with ``hear-m2d[decoders]`` of FFmpeg.
        sample_rate: The requested rate, in hertz.
        content: The file's bytes, if it is not on disk (in an archive, in a table): ``path`` is then
            only the name in errors.

    Returns:
        The waveform, (samples,), in [-1, 1] unless the file stores louder floating-point samples.

    Raises:
        AudioError: The file is corrupt, shorter than its header says, without samples, not finite, not a
            regular file, or of a format that needs a package that is not installed.
        OSError: The file cannot be opened.
    """
    return read_sound(path, sample_rate, content=content).samples


def read_sound(path: str | os.PathLike[str], sample_rate: int, *, content: bytes | None = None) -> Sound:
    """Read as :func:`read_audio`, and also return the file's own rate and number of channels.

    Args:
        path: As for :func:`read_audio`.
        sample_rate: The requested rate, in hertz.
        content: As for :func:`read_audio`.

    Raises:
        AudioError: As for :func:`read_audio`.
        OSError: The file cannot be opened.
    """
    try:
        pieces = _decode(path, content, sample_rate)
        rate = pieces[0].rate
        if all(piece.rate == rate for piece in pieces):
            joined = np.concatenate([piece.samples for piece in pieces]) if pieces[1:] else pieces[0].samples
            samples = _resampled(joined, rate, sample_rate)
        else:  # joined files of different rates
            samples = np.concatenate([_resampled(p.samples, p.rate, sample_rate) for p in pieces])
    except DecodeError as error:
        raise AudioError(path, error.reason, error.detail) from error
    return Sound(samples, rate, max(piece.channels for piece in pieces))


def _resampled(audio: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    """Return finite samples at another rate."""
    if not np.isfinite(audio).all():
        raise DecodeError("non-finite", "it holds NaN or infinite samples")
    if rate == sample_rate:
        return np.ascontiguousarray(audio, dtype=np.float32)
    resampled = soxr.resample(audio, rate, sample_rate, quality="HQ")
    if len(resampled) == 0:
        raise DecodeError("empty", f"its {len(audio)} samples at {rate} hertz are none at {sample_rate}")
    if not np.isfinite(resampled).all():  # the filter may overshoot
        raise DecodeError("non-finite", "its samples are too loud to be resampled")
    return np.ascontiguousarray(resampled, dtype=np.float32)


def _decode(path: str | os.PathLike[str], content: bytes | None, sample_rate: int) -> list[Piece]:
    """Return the sound of a file at its own rate, in pieces if files were joined."""
    if content is None and not stat.S_ISREG(os.stat(path).st_mode) and not Path(path).is_dir():  # noqa: PTH116
        raise DecodeError("unreadable", "it is not a regular file")  # reading a pipe might never end
    head = _head(path, content)
    if not head:
        raise DecodeError("empty", "it holds no bytes")
    kind = format_of(head)
    if kind is None and Path(path).suffix.lower() in _MP3_SUFFIXES:
        kind = MP3  # with other bytes before it
    source = path if content is None else content

    def whole() -> bytes:
        return Path(path).read_bytes() if content is None else content

    if kind is OGG:
        pieces: list[Piece] = []
        for link in ogg_links(whole(), sample_rate):
            pieces += pyav.decode(link.data, OGG) if link.multiplexed else _either(link.data, OGG)
        return pieces
    if kind is MP3:
        return _decode_mp3(whole(), head)
    if kind is FLAC:
        starts = _flac_starts(whole())
    else:
        with _open(source) as file:
            starts = joined_starts(file)
    if len(starts) > 1:
        data = whole()
        parts = [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
        return [piece for part in parts for piece in _either(part, kind)]
    try:
        return _either(source, kind)
    except DecodeError as error:
        if kind is None and error.undecodable:
            return _decode_mp3(whole(), head)
        raise


def _head(path: str | os.PathLike[str], content: bytes | None) -> bytes:
    """Return the first bytes of a file, behind an ID3 tag."""
    if content is not None:
        start = skip_tags(content, 0)
        return content[start : start + _HEAD] or content[:_HEAD]
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(_HEAD)
        if head[:3] == b"ID3":
            file.seek(skip_tags(head, 0, end=1 << 62))
            head = file.read(_HEAD) or head
    return head


def _either(source: str | os.PathLike[str] | bytes, kind: Format | None) -> list[Piece]:
    """Decode with libsndfile, or else with PyAV."""
    if kind is not None and kind not in _SNDFILE:  # libsndfile takes AAC for MP3
        return pyav.decode(source, kind)
    try:
        return [sndfile.decode(source)]
    except DecodeError as error:
        if kind is None or not error.undecodable:
            raise
        with _open(source) as file:
            if missing := cut_chunk(file, kind):
                raise DecodeError("truncated", missing) from error
        return pyav.decode(source, kind)


def _decode_mp3(data: bytes, head: bytes) -> list[Piece]:
    """Decode the streams of an MP3."""
    links = mp3_links(data)
    if not links:
        raise DecodeError("corrupt", not_audio(head))
    return [piece for link in links for piece in _decode_link(data, link)]


def _decode_link(data: bytes, link: Mp3Link) -> list[Piece]:
    """Decode a stream: libsndfile needs the right number of frames in its header, or a constant bit rate."""
    start, end = link.trim
    least = link.frames * link.samples - start - end
    if link.is_stated:  # then libsndfile reads to the end, and its trimming may differ from ours
        least = max(least - _MP3_SLACK, 1)
    try:
        return [sndfile.decode(data[link.start : link.stop], least=least)]
    except DecodeError as error:
        if not error.undecodable:
            raise
    pieces = pyav.decode(b"".join(data[a:b] for a, b in link.ranges), MP3)
    if sum(len(piece.samples) for piece in pieces) != link.frames * link.samples or len(pieces) > 1:
        raise DecodeError("corrupt", "not all of its frames decode")
    return [replace(pieces[0], samples=pieces[0].samples[start : len(pieces[0].samples) - end])]


def _flac_starts(data: bytes) -> list[int]:
    """Return where FLAC files begin in a file: several may be joined."""
    mark = b"fLaC\x00\x00\x00\x22"  # with the length of its first block
    starts, position = [0], data.find(mark, data.find(mark) + 1)
    while position > 0:
        starts.append(position)
        position = data.find(mark, position + 1)
    return starts


def _open(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    """Open a path, or bytes."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: PTH123
