"""The format of a file, from its first bytes: a suffix may be wrong."""

from __future__ import annotations

import io
import re
from typing import IO, Literal, NamedTuple


class Format(NamedTuple):
    """A format that is known by its first bytes.

    Attributes:
        name: Name in messages.
        demuxer: FFmpeg's name for it.
        states_length: Its header states how long the sound is.
    """

    name: str
    demuxer: str
    states_length: bool = False


OGG = Format("Ogg", "ogg")
MP3 = Format("MP3", "mp3")
FLAC = Format("FLAC", "flac", True)
WAV = Format("WAV", "wav", True)
AIFF = Format("AIFF", "aiff", True)
CAF = Format("CAF", "caf", True)
_FORMATS = (
    (rb"OggS", OGG),
    (rb"fLaC", FLAC),
    (rb"RIFF....WAVE", WAV),
    (rb"FORM....AIF[FC]", AIFF),
    (rb"caff", CAF),
    (rb"....(?:ftyp|moov|mdat|wide|skip|free)", Format("MPEG-4", "mov", True)),
    (rb"\x1a\x45\xdf\xa3", Format("Matroska or WebM", "matroska", True)),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Format("Windows Media", "asf", True)),
    (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", Format("AAC", "aac")),
    (rb"\xff[\xe0-\xff]", MP3),
    (rb"\x0b\x77", Format("AC-3", "ac3")),
    (rb"#!AMR", Format("AMR", "amr")),
    (rb"wvpk", Format("WavPack", "wv", True)),
    (rb"MAC ", Format("Monkey's Audio", "ape", True)),
    (rb"TTA1", Format("True Audio", "tta", True)),
)
_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_TEXT = re.compile(rb"[\t\n\r\f\x20-\x7e\x80-\xff]+")


def format_of(head: bytes) -> Format | None:
    """Return the format of a file that begins with these bytes; None if it is not known."""
    for pattern, known in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return known
    return None


def cut_chunk(file: IO[bytes], kind: Format | None) -> str:
    """Return the chunk of a WAV, AIFF or CAF file that ends after the file does; empty if there is none."""
    if kind not in (WAV, AIFF, CAF):
        return ""
    width = 8 if kind is CAF else 4  # bytes of a size
    order: Literal["little", "big"] = "little" if kind is WAV else "big"
    end = file.seek(0, io.SEEK_END)
    position = 8 if kind is CAF else 12
    while position + 4 + width <= end:
        file.seek(position)
        head = file.read(4 + width)
        size = int.from_bytes(head[4:], order)
        position += 4 + width + size + (size % 2 if kind is not CAF else 0)
        if position - size % 2 > end and not is_unknown(size):
            return f"its chunk {head[:4].decode('latin-1')!r} of {size} bytes is cut off"
        if size == 0 and head[:4] == b"data":  # never completed
            break
    return ""


def joined_starts(file: IO[bytes]) -> list[int]:
    """Return where files begin in a WAV, AIFF, W64, AU, CAF or MPEG-4 file: several may be joined."""
    starts, position = [], 0
    end = file.seek(0, io.SEEK_END)
    while position < end:
        file.seek(position)
        stop = _end_of_file(file, position, file.read(24))
        if stop <= position:
            break
        starts.append(position)
        position = stop
    return starts


def _end_of_file(file: IO[bytes], start: int, head: bytes) -> int:
    """Return where the file that begins at `start` ends; 0 if its header does not say it."""
    if re.match(rb"RIFF....WAVE|FORM....AIF[FC]", head, re.DOTALL):
        size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return start + 8 + size + size % 2
    if head[:16] == _W64:
        return start + (int.from_bytes(head[16:24], "little") + 7) // 8 * 8
    if head[:4] == b".snd":
        return start + int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    if head[:4] == b"caff":
        return _end_of_chunks(file, start + 8, b"caff", size_first=False)
    if head[4:8] == b"ftyp":
        return _end_of_chunks(file, start + int.from_bytes(head[:4], "big"), b"ftyp", size_first=True)
    return 0


def _end_of_chunks(file: IO[bytes], position: int, mark: bytes, *, size_first: bool) -> int:
    """Return where the chunks of a CAF file, or the boxes of an MPEG-4 file, end: at the next file's mark."""
    end = file.seek(0, io.SEEK_END)
    while position < end:
        file.seek(position)
        head = file.read(16)
        kind, size = (head[4:8], head[:4]) if size_first else (head[:4], head[4:12])
        if len(head) < 8 or kind == mark:
            return position
        length = int.from_bytes(size, "big")
        if size_first and length == 1:
            length = int.from_bytes(head[8:16], "big")
        if size_first and length < 8:  # 0: to the end
            break
        position += length if size_first else 12 + length
    return end


def is_unknown(size: int) -> bool:
    """Return whether a program that writes to a pipe states this size: the largest, or slightly less."""
    return any(0 <= most - size <= 1 << 16 for most in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def not_audio(head: bytes) -> str:
    """Return a guess of the content of a file of unknown format."""
    if re.match(rb"\s*(?:<!doctype html|<html|<head)", head, re.IGNORECASE):
        return "it is an HTML page"
    if _TEXT.fullmatch(head):
        return f"it is text that begins with {head[:20].decode('ascii', 'replace')!r}"
    return "its format is not known"
