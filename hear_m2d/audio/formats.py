"""The format of a file, from its first bytes: a suffix may be wrong."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple


class Layout(NamedTuple):
    """How the elements of a container (chunks, boxes, objects, blocks) follow one another.

    Attributes:
        first: Where the first element begins, bytes.
        names: A pattern of the names of elements.
        name: Where an element has its name.
        size: Where an element has its size.
        order: The byte order of the size.
        extra: How many bytes an element has beyond its size.
        align: Elements begin at multiples of this many bytes.
    """

    first: int
    names: bytes
    name: slice
    size: slice
    order: Literal["little", "big"]
    extra: int = 0
    align: int = 1


class Format(NamedTuple):
    """A format that is known by its first bytes.

    Attributes:
        name: Name in messages.
        demuxer: FFmpeg's name for it.
        states_length: Whether its header states how long the sound is.
        layout: How its elements follow one another; they show where a file ends.
        begins: A pattern with which a file of this format begins, and which is rare in other data.
        by_libsndfile: Whether libsndfile may be able to decode it.
    """

    name: str
    demuxer: str
    states_length: bool = False
    layout: Layout | None = None
    begins: bytes | None = None
    by_libsndfile: bool = False

    @property
    def states_end(self) -> bool:
        """Whether its header shows where a file ends; else only the decoder finds that."""
        return self.layout is not None or self.demuxer in ("au", "matroska")


_CHUNK = rb"(?!FORM|RIFF)[ -~]{4}"
_ASF_MARK = rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"
_ASF_NAMES = rb"[\x30\x36]\x26\xb2\x75|\x90\x08\x00\x33|\xd3\x29\xe2\xd6|\xf8\x03\xb1\xfe"
_W64 = rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
# fmt: off
_RIFF = Layout(12, _CHUNK, slice(0, 4), slice(4, 8), "little", extra=8, align=2)
OGG = Format("Ogg", "ogg", begins=rb"OggS\x00\x02\x00{8}", by_libsndfile=True)
MP3 = Format("MP3", "mp3", begins=rb"ID3[\x02-\x04]\x00.[\x00-\x7f]{4}")
MATROSKA = Format("Matroska or WebM", "matroska", True, begins=rb"\x1a\x45\xdf\xa3.{1,8}\x42\x86\x81\x01")
AU = Format("AU", "au", True, begins=rb"\.snd\x00{3}[\x18-\xff]", by_libsndfile=True)
FLAC = Format("FLAC", "flac", True, begins=rb"fLaC[\x00\x80]\x00\x00\x22", by_libsndfile=True)
WAV = Format("WAV", "wav", True, _RIFF, rb"(?:RIFF|RF64|BW64)....WAVE", True)
RIFX = Format("RIFX", "wav", True, _RIFF._replace(order="big"), rb"RIFX....WAVE", True)
AIFF = Format("AIFF", "aiff", True, _RIFF._replace(order="big"), rb"FORM....AIF[FC]", True)
CAF = Format("CAF", "caf", True, Layout(8, _CHUNK, slice(0, 4), slice(4, 12), "big", extra=12),
             rb"caff\x00\x01\x00\x00", True)
W64 = Format("W64", "w64", True, Layout(0, _W64, slice(0, 16), slice(16, 24), "little"), _W64, True)
_MPEG4 = Format("MPEG-4", "mov", True, Layout(0, _CHUNK, slice(4, 8), slice(0, 4), "big"),
               rb"\x00\x00\x00.ftyp")
_ASF = Format("Windows Media", "asf", True, Layout(0, _ASF_NAMES, slice(0, 16), slice(16, 24), "little"),
              _ASF_MARK)
_INITIAL_BLOCK = re.escape(bytes(byte for byte in range(256) if byte & 8))  # a bit among WavPack's flags
_WAVPACK = Format(
    "WavPack", "wv", True, Layout(0, rb"wvpk", slice(0, 4), slice(4, 8), "little", extra=8),
    rb"wvpk.{12}\x00{4}(?!\x00{4}).{5}[" + _INITIAL_BLOCK + rb"]",  # with samples, the first of which is 0
)
TTA = Format("True Audio", "tta", True, begins=rb"TTA1[\x01-\x03]\x00[\x01-\x20]\x00[\x08-\x20]\x00")
_FORMATS = (
    (rb"OggS", OGG),
    (rb"fLaC", FLAC),
    (rb"(?:RIFF|RF64|BW64)....WAVE", WAV),
    (rb"RIFX....WAVE", RIFX),
    (rb"FORM....AIF[FC]", AIFF),
    (rb"caff", CAF),
    (_W64, W64),
    (rb"\.snd", AU),
    (rb"....(?:ftyp|moov|mdat|wide|skip|free)", _MPEG4),
    (rb"\x1a\x45\xdf\xa3", MATROSKA),
    (_ASF_MARK, _ASF),
    (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", Format("AAC", "aac")),
    (rb"\xff[\xe0-\xff]", MP3),
    (rb"\x0b\x77", Format("AC-3", "ac3")),
    (rb"#!AMR", Format("AMR", "amr")),
    (rb"wvpk", _WAVPACK),
    (rb"MAC ", Format("Monkey's Audio", "ape", True)),
    (rb"TTA1", TTA),
)
# fmt: on
BEGINNINGS = b"|".join(kind.begins for _, kind in _FORMATS if kind.begins)
_TEXT = re.compile(rb"[\t\n\r\f\x20-\x7e\x80-\xff]+")


def format_of(head: bytes) -> Format | None:
    """Return the format of a file that begins with these bytes; None if it is not known."""
    for pattern, known in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return known
    return None


def not_audio(head: bytes) -> str:
    """Return a guess of the content of a file of unknown format."""
    if re.match(rb"\s*(?:<!doctype html|<html|<head)", head, re.IGNORECASE):
        return "it is an HTML page"
    if _TEXT.fullmatch(head):
        return f"it is text that begins with {head[:20].decode('ascii', 'replace')!r}"
    return "its format is not known"
