"""MPEG audio frames: all are counted, because the header may state too few.

ISO 11172-3 and 13818-3. Joined files are separated where a new one begins: at a frame that only states a
length (``Xing``, ``Info`` or ``VBRI``), or where the rate or the number of channels changes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

from hear_m2d.audio.containers import PADDING, skip_tags
from hear_m2d.audio.types import DecodeError

# fmt: off
_BITRATES = {  # kilobits per second, by (MPEG 1, layer); index 0 means any constant rate ("free format")
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# fmt: on
_RATES = (44100, 48000, 32000)
_LARGEST_FREE = 5000  # bytes of a frame in free format
_SLACK_BYTES = 64  # some encoders count their tags
_DECODER_DELAY = 529  # samples that every decoder of layer III adds


class _Header(NamedTuple):
    """The header of a frame."""

    kind: tuple[int, int, int, bool]  # version, layer, hertz, mono: equal within one stream
    size: int  # bytes; 0 in free format
    samples: int
    padding: int
    tag_at: int  # bytes from the frame's start to where a length would be stated


@dataclass
class Mp3Link:
    """Frames of one stream.

    Attributes:
        start: Where it begins, bytes.
        stop: Where it ends.
        samples: Samples per frame.
        frames: Number of frames with sound.
        stated: Number of frames that the first frame states; None if it states none.
        stated_bytes: Number of bytes that the first frame states.
        trim: Samples that the encoder and a decoder add at the beginning and at the end.
        ranges: Where the frames with sound lie, as first and last-plus-one bytes.
    """

    start: int
    stop: int
    samples: int
    frames: int = 0
    stated: int | None = None
    stated_bytes: int | None = None
    trim: tuple[int, int] = (0, 0)
    ranges: list[list[int]] = field(default_factory=list)

    def add(self, start: int, stop: int) -> None:
        """Add a frame with sound."""
        self.frames += 1
        if self.ranges and self.ranges[-1][1] == start:
            self.ranges[-1][1] = stop
        else:
            self.ranges.append([start, stop])

    @property
    def is_stated(self) -> bool:
        """Whether the stated number of frames is right; some writers count the first frame too."""
        return self.stated in (self.frames, self.frames + 1)

    @property
    def holds_its_bytes(self) -> bool:
        """Whether there are as many bytes as the first frame states: then its number of frames is wrong."""
        return self.stated_bytes is not None and self.stop - self.start + _SLACK_BYTES >= self.stated_bytes


def mp3_links(data: bytes) -> list[Mp3Link]:
    """Return the streams of an MPEG audio file; none if it holds no frames.

    Tags, bytes before the first frame and bytes after the last one are skipped.

    Raises:
        DecodeError: Bytes between frames are not sound, the last frame is cut off, or a stream has fewer
            frames than its header states.
    """
    links: list[Mp3Link] = []
    header: _Header | None = None  # of the latest frame
    position = _next_frame(data, 0)
    while 0 <= position < len(data):
        frame = _parse(data, position)
        if frame is None or (
            header and frame.kind != header.kind and not _is_confirmed(data, position, frame)
        ):
            following = _next_frame(data, position)
            if following < 0:
                break
            gap = data[skip_tags(data, position) : following]
            if len(gap) > PADDING or gap.strip(b"\0"):
                raise DecodeError("corrupt", f"{len(gap)} bytes before byte {following} are not MP3 frames")
            position = following
            continue
        stop = position + frame.size
        if stop > len(data):
            held = len(data) - position
            raise DecodeError("truncated", f"its last frame has {held} of {frame.size} bytes")
        tag = data[position + frame.tag_at : position + frame.tag_at + 4]
        states = tag in (b"Xing", b"Info") or data[position + 36 : position + 40] == b"VBRI"
        if states or header is None or frame.kind != header.kind:
            links.append(Mp3Link(position, stop, frame.samples))
        if tag in (b"Xing", b"Info"):
            _read_info(data[position + frame.tag_at : stop], links[-1])
        if not states:
            links[-1].add(position, stop)
        links[-1].stop = position = stop
        header = frame
    if links and 0 < len(data) - links[-1].stop < 4 and data[links[-1].stop] == 0xFF:
        raise DecodeError("truncated", "its last frame is cut off in its header")
    for link in links:
        if link.stated is not None and link.frames < link.stated - 1 and not link.holds_its_bytes:
            raise DecodeError(
                "truncated", f"its header promises {link.stated} frames, it holds {link.frames}"
            )
    return [link for link in links if link.frames]


def _parse(data: bytes, position: int) -> _Header | None:
    """Return the header of the frame at a position; None if there is none."""
    header = _parse_word(data[position : position + 4])
    if header is not None and header.size == 0:
        size = _free_size(data, position, header)
        return header._replace(size=size) if size else None
    return header


@functools.lru_cache(1024)
def _parse_word(word: bytes) -> _Header | None:
    """Return a header from its four bytes."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE0 != 0xE0:
        return None
    version, layer = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3)
    bitrate, rate, padding = word[2] >> 4, word[2] >> 2 & 3, word[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate == 15 or rate == 3:
        return None
    first = version == 3  # MPEG 1; 2 is MPEG 2, 0 is MPEG 2.5
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = {1: 384, 2: 1152, 3: 1152 if first else 576}[layer]
    slot = 4 if layer == 1 else 1  # bytes
    kilobits = _BITRATES[first, layer][bitrate]
    size = (samples // 8 * 1000 * kilobits // (hertz * slot) + padding) * slot if kilobits else 0
    mono = word[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Header((version, layer, hertz, mono), size, samples, padding * slot, 4 + side)


def _free_size(data: bytes, position: int, header: _Header) -> int:
    """Return the size of a frame in free format: the distance to the next header of its kind."""
    for distance in range(24, _LARGEST_FREE):
        following = data[position + distance : position + distance + 3]
        if following[:2] == data[position : position + 2] and (following[2] ^ data[position + 2]) & 0xFC == 0:
            return distance
    return 0


def _is_confirmed(data: bytes, position: int, header: _Header) -> bool:
    """Return whether another frame of the same kind follows, or the end, or a tag."""
    stop = position + header.size
    following = _parse_word(data[stop : stop + 4])
    return (
        stop == len(data)
        or data[stop : stop + 3] == b"TAG"
        or bool(following and following.kind == header.kind)
    )


def _next_frame(data: bytes, position: int) -> int:
    """Return where the next frame begins that another frame follows; -1 if there is none."""
    position = data.find(b"\xff", skip_tags(data, position))
    while position >= 0:
        header = _parse(data, position)
        if header is not None and _is_confirmed(data, position, header):
            return position
        position = data.find(b"\xff", position + 1)
    return -1


def _read_info(tag: bytes, link: Mp3Link) -> None:
    """Read what a Xing or Info frame states."""
    flags = int.from_bytes(tag[4:8], "big")
    position = 8
    if flags & 1:
        link.stated = int.from_bytes(tag[position : position + 4], "big")
        position += 4
    if flags & 2:
        link.stated_bytes = int.from_bytes(tag[position : position + 4], "big")
        position += 4
    position += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    lame = int.from_bytes(tag[position + 21 : position + 24], "big")
    if tag[position : position + 4].isalnum() and lame:  # written by LAME or a compatible encoder
        link.trim = ((lame >> 12) + _DECODER_DELAY, max((lame & 0xFFF) - _DECODER_DELAY, 0))
