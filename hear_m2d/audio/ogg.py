"""Ogg pages: each is checked, chained streams are separated, and Opus is decoded at a sufficient rate.

RFC 3533 (Ogg), RFC 7845 (Opus in Ogg). libsndfile reads only the first stream of a chain, skips damaged
pages, and decodes Opus at the header's rate, which describes the input of the encoder only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from hear_m2d.audio.types import DecodeError

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))  # the bits of each byte, reversed
_FIRST = 2  # flag of the first page of a stream
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # rates at which Opus decodes; the last loses nothing


@dataclass(frozen=True)
class OggLink:
    """One link of a chain: a complete Ogg file.

    Attributes:
        data: Its bytes.
        multiplexed: Whether it holds several streams at the same time.
    """

    data: bytes
    multiplexed: bool


def ogg_links(data: bytes, sample_rate: int) -> list[OggLink]:
    """Return the links of an Ogg file.

    Args:
        data: The file's bytes.
        sample_rate: The requested rate, hertz.

    Raises:
        DecodeError: A page is damaged, missing or cut off.
    """
    starts: list[list[int]] = []  # for each link, where its first pages begin, one for each of its streams
    numbers: dict[int, int] = {}  # number of the latest page of each stream
    at_start = False
    position = data.find(b"OggS")
    end = position
    while position >= 0:
        size = _page_size(data, position)
        if position + size > len(data):
            raise DecodeError("truncated", f"its last page needs {size} bytes and has {len(data) - position}")
        page = data[position : position + size]
        if _checksum(page) != int.from_bytes(page[22:26], "little"):
            raise DecodeError("corrupt", f"the Ogg page at byte {position} is damaged")
        serial, number = (int.from_bytes(page[at : at + 4], "little") for at in (14, 18))
        if page[5] & _FIRST:
            if not at_start:
                starts.append([])
            starts[-1].append(position)
        elif serial in numbers and number != (numbers[serial] + 1) % 2**32:
            raise DecodeError("corrupt", f"Ogg pages are missing at byte {position}")
        elif not starts:
            raise DecodeError("corrupt", "its first Ogg pages are missing")
        at_start = bool(page[5] & _FIRST)
        numbers[serial] = number
        end = position + size
        position = end if data[end : end + 4] == b"OggS" else data.find(b"OggS", end)
        if position > end:
            raise DecodeError("corrupt", f"{position - end} bytes at byte {end} are not an Ogg page")
    stops = [link[0] for link in starts[1:]] + [end]
    return [
        OggLink(_with_opus_rate(data[link[0] : stop], sample_rate), len(link) > 1)
        for link, stop in zip(starts, stops, strict=True)
    ]


def _page_size(data: bytes, position: int) -> int:
    """Return a page's size: its header, the table of segment sizes, and the segments."""
    count = data[position + 26] if position + 26 < len(data) else 0
    return 27 + count + sum(data[position + 27 : position + 27 + count])


def _checksum(page: bytes) -> int:
    """Return the CRC of a page: zlib's, but with the bits of each byte reversed, and starting from 0."""
    blank = page[:22] + bytes(4) + page[26:]
    reflected = zlib.crc32(blank.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def _with_opus_rate(link: bytes, sample_rate: int) -> bytes:
    """Return the link; if it is Opus with a lower rate in its header, the header then states 48,000 Hz."""
    size = _page_size(link, 0)
    page = bytearray(link[:size])
    head = 27 + page[26]
    stated = int.from_bytes(page[head + 12 : head + 16], "little")
    if page[head : head + 8] != b"OpusHead" or (stated >= sample_rate and stated in _OPUS_RATES):
        return link
    page[head + 12 : head + 16] = _OPUS_RATES[-1].to_bytes(4, "little")
    page[22:26] = _checksum(bytes(page)).to_bytes(4, "little")
    return bytes(page) + link[size:]
