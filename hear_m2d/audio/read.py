"""Decode audio files: any common format, any rate, any channels → mono float32.

Decoding is strict: a file that cannot be read completely raises an :class:`AudioError` with the file's name
and the reason. Callers that read many files catch it, count it and go on. libsndfile decodes the files that
it can read completely. PyAV (FFmpeg) decodes the others, in a separate process.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from hear_m2d.audio import pyav, sndfile
from hear_m2d.audio.containers import HEAD, Content, FileBytes, cut_chunk, end_of, next_file, skip_tags
from hear_m2d.audio.formats import FLAC, MP3, OGG, Format, format_of, not_audio
from hear_m2d.audio.mp3 import Mp3Link, mp3_links
from hear_m2d.audio.ogg import ogg_links
from hear_m2d.audio.types import AudioError, DecodeError, Piece, Sound

_MP3_SUFFIXES = (".mp1", ".mp2", ".mp3", ".mpga")
_MP3_SLACK = 2 * 1152  # samples: largest delay and padding of decoders


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
        raise DecodeError("empty", f"its {len(audio)} samples at {rate} hertz give none at {sample_rate}")
    if not np.isfinite(resampled).all():  # the filter may overshoot
        raise DecodeError("non-finite", "its samples are too loud to be resampled")
    return np.ascontiguousarray(resampled, dtype=np.float32)


def _decode(path: str | os.PathLike[str], content: bytes | None, sample_rate: int) -> list[Piece]:
    """Return the sound of a file at its own rate, in several pieces if files were joined."""
    if content is not None:
        return _decode_files(path, content, sample_rate)
    if not stat.S_ISREG(os.stat(path).st_mode) and not Path(path).is_dir():  # noqa: PTH116
        raise DecodeError("unreadable", "it is not a regular file")  # reading a pipe might never end
    with open(path, "rb") as file:  # noqa: PTH123
        return _decode_files(path, FileBytes(file), sample_rate)


def _decode_files(path: str | os.PathLike[str], data: Content, sample_rate: int) -> list[Piece]:
    """Decode the file at the start of the data, and the files that follow it."""
    if len(data) == 0:
        raise DecodeError("empty", "it holds no bytes")
    pieces: list[Piece] = []
    position = skip_tags(data, 0) % len(data)
    while position < len(data):
        kind = format_of(data[position : position + HEAD])
        if kind is None and Path(path).suffix.lower() in _MP3_SUFFIXES:
            kind = MP3  # with other bytes before it
        if kind is None or not kind.states_end:  # only the decoder finds the end: it gets the bytes
            data = data[:]
        stop = end_of(data, position, kind)
        is_whole = position == 0 and stop == len(data)
        part = path if is_whole and isinstance(data, FileBytes) else data[position:stop]
        found, used = _decode_one(part, kind, sample_rate)
        pieces += found
        position = next_file(data, min(stop, position + used), kind)
    return pieces


def _decode_one(
    source: str | os.PathLike[str] | bytes, kind: Format | None, sample_rate: int
) -> tuple[list[Piece], int]:
    """Decode one file; also return where its sound ends, if only the decoder can tell."""
    if isinstance(source, bytes) and kind is OGG:
        links = ogg_links(source, sample_rate)
        decode = [pyav.decode if link.multiplexed else _either for link in links]
        pieces = [p for link, way in zip(links, decode, strict=True) for p in way(link.data, OGG)[0]]
        return pieces, sum(len(link.data) for link in links)
    if isinstance(source, bytes) and kind is MP3:
        return _decode_mp3(source)
    try:
        pieces, end = _either(source, kind)
    except DecodeError as error:
        if kind is not None or not error.undecodable or not isinstance(source, bytes):
            raise
        return _decode_mp3(source, least=len(source) // 2)  # with other bytes before it
    return pieces, sys.maxsize if kind is not None and kind.states_end else end


def _either(source: str | os.PathLike[str] | bytes, kind: Format | None) -> tuple[list[Piece], int]:
    """Decode with libsndfile, or else with PyAV."""
    if kind is not None and not kind.by_libsndfile:  # libsndfile takes AAC for MP3
        return pyav.decode(source, kind)
    try:
        return [sndfile.decode(source, to_end=kind in (None, FLAC))], sys.maxsize
    except DecodeError as error:
        if kind is None or not error.undecodable:
            raise
        if missing := _cut_chunk(source, kind):
            raise DecodeError("truncated", missing) from error
        return pyav.decode(source, kind)


def _cut_chunk(source: str | os.PathLike[str] | bytes, kind: Format) -> str:
    if isinstance(source, bytes):
        return cut_chunk(source, kind)
    with open(source, "rb") as file:  # noqa: PTH123
        return cut_chunk(FileBytes(file), kind)


def _decode_mp3(data: bytes, *, least: int = 0) -> tuple[list[Piece], int]:
    """Decode the streams of an MP3 whose frames make up at least ``least`` bytes."""
    try:
        links = mp3_links(data)
    except DecodeError as error:
        raise DecodeError("corrupt", not_audio(data[:HEAD])) if least else error from error
    if not links or sum(stop - start for link in links for start, stop in link.ranges) < least:
        raise DecodeError("corrupt", not_audio(data[:HEAD]))
    return [piece for link in links for piece in _decode_link(data, link)], links[-1].stop


def _decode_link(data: bytes, link: Mp3Link) -> list[Piece]:
    """Decode a stream; libsndfile needs the right number of frames in its header, or a constant bit rate."""
    start, end = link.trim
    least = link.frames * link.samples - start - end
    if link.is_stated:  # then libsndfile reads to the end, and its trimming may differ from ours
        least = max(least - _MP3_SLACK, 1)
    try:
        return [sndfile.decode(data[link.start : link.stop], least=least)]
    except DecodeError as error:
        if not error.undecodable:
            raise
    pieces, _ = pyav.decode(b"".join(data[a:b] for a, b in link.ranges), MP3)
    if sum(len(piece.samples) for piece in pieces) != link.frames * link.samples or len(pieces) > 1:
        raise DecodeError("corrupt", "not all of its frames decode")
    return [replace(pieces[0], samples=pieces[0].samples[start : len(pieces[0].samples) - end])]
