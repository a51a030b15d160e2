"""Where a file ends according to its header: what follows may be tags, padding, or another file.

Files are joined by programs such as ``cat``, and many decoders give only the first part without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from hear_m2d.audio.formats import AU, BEGINNINGS, FLAC, MATROSKA, MP3, OGG, TTA, WAV, Format, format_of
from hear_m2d.audio.types import DecodeError

PADDING = 2048  # bytes of a CD sector: so many bytes that are not audio may follow a file
HEAD = 4096  # bytes that are read to find the format
_READ_AHEAD = 1 << 16  # bytes: more than decoders read beyond the sound
# Elements with sound (WAV, AIFF, MPEG-4, ASF), and the largest size that means it was never filled in
_NEVER_COMPLETED = {b"data": 0, b"SSND": 0, b"mdat": 0, b"\x36\x26\xb2\x75": 50}
_SOUND = (*_NEVER_COMPLETED, b"moov", b"moof")


class FileBytes:
    """The bytes of an open file; a slice reads them from the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, 2)

    def __len__(self) -> int:
        """Return the file's size."""
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Read the bytes of a slice."""
        start, stop, _ = part.indices(self._size)
        self._file.seek(start)
        return self._file.read(max(stop - start, 0))


Content = bytes | FileBytes


def end_of(data: Content, start: int, kind: Format | None) -> int:
    """Return where the file that begins at `start` ends; the end of the data if that is unknown."""
    stop = 0
    if kind is AU:
        sound = int.from_bytes(data[start + 8 : start + 12], "big")
        stop = 0 if is_unknown(sound) else start + int.from_bytes(data[start + 4 : start + 8], "big") + sound
    elif kind is MATROSKA:
        stop = _end_of_matroska(data, start)
        if stop > len(data):
            promised, held = stop - start, len(data) - start
            raise DecodeError("truncated", f"its header promises {promised} bytes, it holds {held}")
    elif kind is not None and kind.layout is not None:
        has_sound = False
        for name, position, stop_here in _elements(data, start, kind):
            is_other = has_sound and name not in _SOUND and stop_here > len(data) + 1  # not an element
            stop = position if is_other else stop_here
            has_sound |= name in _SOUND
    if stop <= start and kind not in (OGG, MP3):
        stop = _next_beginning(data[:], start, kind)
    return min(stop, len(data)) if stop > start else len(data)


def _next_beginning(data: bytes, start: int, kind: Format | None) -> int:
    """Return where the next file begins, if more than a few bytes identify its format; else 0."""
    own = kind and kind.begins and re.compile(kind.begins, re.DOTALL).search(data, start + 1)
    if own:
        return own.start()
    is_stated = kind is TTA or (kind is FLAC and int.from_bytes(data[start + 21 : start + 26]) & 0xFFFFFFFFF)
    first = max(start + HEAD, len(data) - _READ_AHEAD if is_stated else 0)  # else the decoder finds the end
    other = re.compile(BEGINNINGS, re.DOTALL).search(data, first)
    return other.start() if other else 0


def cut_chunk(data: Content, kind: Format) -> str:
    """Return the element of a container that ends after the data does; empty if there is none."""
    for name, _, stop in _elements(data, 0, kind):
        if stop > len(data) + 1:
            return f"its chunk {name.decode('latin-1')!r} is cut off"
    return ""


def _elements(data: Content, start: int, kind: Format) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each element of a file; an end of 0 means unknown."""
    layout = kind.layout
    if layout is None:
        return
    position = start + layout.first
    while position < len(data):
        head = data[position : position + 32]
        at = format_of(head)
        before = data[position - 1 : position + 31]
        is_shifted = not re.match(layout.names, head) and re.match(layout.names, before)
        if is_shifted and at is None and layout.align == 2:
            position, head = position - 1, before  # a chunk of odd size, not padded
        name = head[layout.name]
        begins = at is not None and (at is not kind or re.match(kind.begins or b"", head, re.DOTALL))
        if not re.match(layout.names, name) or (begins and position > start):
            return
        size = int.from_bytes(head[layout.size], layout.order)
        if kind is WAV and name == b"data" and size == 0xFFFFFFFF and data[start : start + 4] != b"RIFF":
            size = int.from_bytes(data[start + 28 : start + 36], "little")  # of 64 bits
        elif layout.size == slice(0, 4) and size == 1:
            size = int.from_bytes(head[8:16], "big")  # MPEG-4's size of 64 bits
        stop = position + size + layout.extra
        stop += (start - stop) % layout.align
        if is_unknown(size) or stop <= position or size <= _NEVER_COMPLETED.get(name[:4], -1):
            yield name[:4], position, 0
            return
        yield name[:4], position, stop
        position = stop


def _end_of_matroska(data: Content, start: int) -> int:
    """Return where a Matroska file ends: after its header and its segment; 0 if that is unknown."""
    position = start
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        head = data[position : position + 12]
        width = 9 - head[4].bit_length() if len(head) == 12 else 9  # bytes of the size
        size = int.from_bytes(head[4 : 4 + width], "big") ^ 1 << 7 * width
        if head[:4] != name or width > 8 or size == (1 << 7 * width) - 1:
            return 0
        position += 4 + width + size
    return position


def is_unknown(size: int) -> bool:
    """Return whether a size means unknown: programs that write to pipes state the largest, or a bit less."""
    return any(0 <= most - size <= 1 << 16 for most in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def next_file(data: Content, stop: int, kind: Format | None) -> int:
    """Return where another file begins after one that ends at `stop`; the end of the data if none does.

    Raises:
        DecodeError: Something other than tags, zeros and a little padding follows.
    """
    first, end = skip_tags(data, stop), _without_end_tags(data)
    position = first
    while position < end:
        block = data[position : min(position + (1 << 20), end)]
        zeros = len(block) - len(block.lstrip(b"\0"))
        position += zeros
        if zeros < len(block):
            break
    if position - first > PADDING and kind is not None and not kind.states_length:  # a hole in the file?
        raise DecodeError("corrupt", f"{position - first} zeros follow its last sound, at byte {first}")
    following = None
    for at in (first, max(position - 3, first), skip_tags(data, position)):  # MPEG-4 begins with three zeros
        if following is None and (following := format_of(data[at : at + HEAD])) is not None:
            position = at
    is_certain = (
        following is not None and following is not MP3 and following.begins is not None
    )  # identified by more than two bytes
    if position >= end or (not is_certain and end - position <= PADDING):
        return len(data)
    if following is None:
        raise DecodeError("corrupt", f"it has {end - position} bytes after its end, which are not audio")
    return position


def skip_tags(data: Content, position: int) -> int:
    """Return the position after the tags that begin here."""
    while True:
        head = data[position : position + 32]
        if head[:3] == b"TAG":  # ID3v1
            position += 128
        elif head[:3] == b"ID3" and len(head) >= 10:  # its size: four bytes of seven bits
            footer = 10 if head[5] & 0x10 else 0
            position += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + footer
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            is_header = head[23] >> 5 & 1
            position += int.from_bytes(head[12:16], "little") + (32 if is_header else 0)
        else:
            return min(position, len(data))


def _without_end_tags(data: Content) -> int:
    """Return where the tags at the end of a file begin: ID3v1, Lyrics3 and APE."""
    end = len(data)
    if data[max(end - 128, 0) : end][:3] == b"TAG":
        end -= 128
    last = data[max(end - 32, 0) : end]
    if last[-9:] == b"LYRICS200" and last[-15:-9].isdigit():
        end -= int(last[-15:-9]) + 15
    elif last[:8] == b"APETAGEX":
        end -= int.from_bytes(last[12:16], "little") + (32 if last[23] & 0x80 else 0)
    return max(end, 0)
