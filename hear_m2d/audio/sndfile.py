"""Decode with libsndfile, and compare the result with the length that the file's header states."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from hear_m2d.audio.containers import is_unknown, next_file
from hear_m2d.audio.types import DecodeError, Piece

_BLOCK = 1 << 20  # values per read, so that a wrong header cannot decide how much memory is used
# Accepted sample rates, hertz: from slowed-down seismograms to bats. With a rate outside this range a short
# file would be resampled to hours, or need a filter as long as the file.
RATES = (100, 10_000_000)
# How libsndfile's log reports cut-off sound: for a chunk (WAV, AIFF, SVX, AU, WVE), for the file (W64, RF64).
_SHORT_DATA = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)"
    r"|^\s*Data length (\d+) should be (\d+)",
    re.MULTILINE,
)
_FRAMES = re.compile(r"^\s*Frames\s*:\s*(\d+)", re.MULTILINE)
_SLACK_BYTES = 64  # some encoders count the header as sound


def decode(
    source: str | os.PathLike[str] | bytes, *, least: int | None = None, to_end: bool = False
) -> Piece:
    """Decode a file.

    Args:
        source: Its path, or its bytes.
        least: Minimum number of decoded samples, if it is known from elsewhere than the header.
        to_end: Whether bytes that follow the sound are an error.

    Raises:
        DecodeError: libsndfile cannot read the file, or cannot read it to its end.
        OSError: The file cannot be opened.
    """

    def reopen() -> IO[bytes]:
        return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: PTH123

    with reopen() as file:
        size = file.seek(0, io.SEEK_END)
    if isinstance(source, bytes):
        target: object = reopen()
    else:  # as bytes on POSIX: soundfile cannot encode a name that is not UTF-8
        target = os.fsencode(source) if os.name == "posix" else source
    try:
        with soundfile.SoundFile(target) as sound:
            rate, kind, declared, notes = sound.samplerate, sound.format, sound.frames, sound.extra_info
            channels, codec = sound.channels, sound.subtype
            check_rate(rate)
            blocks = []
            frames = max(_BLOCK // channels, 1)
            while len(block := sound.read(frames, dtype="float32", always_2d=True)):  # (frames, channels)
                blocks.append(to_mono(block))
            if to_end and isinstance(target, io.BytesIO):
                check_end(target)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        words = str(getattr(error, "error_string", None) or error).strip()  # without the file's name
        raise DecodeError("corrupt", words or "libsndfile cannot read it", undecodable=True) from error
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if least is not None and len(audio) < least:
        raise DecodeError("truncated", f"{len(audio)} of {least} samples decode", undecodable=True)
    if len(audio) == 0:  # a header that was never completed states a length of 0
        raise DecodeError("empty", "it holds no samples", undecodable=size > 1000)
    if least is None and (missing := _missing(reopen, kind, notes, declared, len(audio))):
        # Of MP3 in WAV the length is only estimated.
        raise DecodeError("truncated", missing, undecodable=codec == "MPEG_LAYER_III")
    return Piece(audio, rate, channels)


def check_end(file: io.BytesIO) -> None:
    """Raise an error if another file, or other bytes, follow what the decoder read."""
    data, stop = file.getvalue(), file.tell()
    if (following := next_file(data, stop, None)) < len(data):
        raise DecodeError("corrupt", f"it has {len(data) - following} bytes after its end")


def check_rate(rate: int) -> None:
    """Raise an error if a sample rate is not plausible."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DecodeError("corrupt", f"its header states a rate of {rate} hertz")


def to_mono(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average channels, (frames, channels) → (frames,)."""
    if block.shape[1] <= 2:  # the same as numpy's mean, and twenty times as fast for so short an axis
        return block[:, 0] if block.shape[1] == 1 else (block[:, 0] + block[:, 1]) * np.float32(0.5)
    mixed: NDArray[np.float32] = block.mean(axis=1)
    return mixed


def _missing(reopen: Callable[[], IO[bytes]], kind: str, notes: str, declared: int, decoded: int) -> str:
    """Return what is missing in a file according to its header; empty if it is complete.

    PAF, PVF, SD2 and IRCAM state no length, and are read as far as they go.
    """
    for match in _SHORT_DATA.findall(notes):
        promised, held = (int(number) for number in match if number)
        if held + _SLACK_BYTES < promised and not is_unknown(promised):
            return f"its header promises {promised} bytes of sound, it holds {held}"
    if kind == "VOC" and "truncated" in notes:
        return "its last block ends past the end of the file"
    if kind in ("AVR", "RF64", "MPC2K"):
        declared = max([declared, *map(int, _FRAMES.findall(notes))])
    if kind == "NIST":
        with reopen() as file:
            stated = re.search(rb"^sample_count -i (\d{1,12})", file.read(1024), re.MULTILINE)
        declared = int(stated[1]) if stated else declared
        if stated and decoded > declared:  # joined files: libsndfile reads to the end
            raise DecodeError("corrupt", f"it has {decoded - declared} samples after its end")
    return f"its header promises {declared} samples, {decoded} decode" if decoded < declared else ""
