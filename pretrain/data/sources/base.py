"""A source of audio: named items in a fixed order, each with a label and a function that reads it.

A source is listed once, before anything is decoded, and keeps mainly names and sizes. A worker gets
a :class:`Part`, a run of items, and reads them on any machine that sees the same paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hear_m2d.audio import Sound
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import printable

Skipped = tuple[str, str, str]  # file, reason, detail


class Item(NamedTuple):
    """One item, not read yet.

    Attributes:
        name: Its name in shards and reports; unique in its source unless a list repeats itself.
        label: A cell of labels (``utils/listing.py``); None if there is none.
        read: Takes the wanted sample rate in hertz; raises :class:`~hear_m2d.audio.AudioError` or
            :class:`OSError`.
    """

    name: str
    label: str | None
    read: Callable[[int], Sound]


class Part(Protocol):
    """A run of items; it can be pickled."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


@dataclass(frozen=True, eq=False)
class Source:
    """A listed source.

    Attributes:
        kind: ``folder``, ``list``, ``tar``, ``parquet`` or ``hub``.
        name: The last part of its path, or its address.
        sizes: Bytes of each item, (items,); an estimate in tables.
        sha256: Of the listing: equal sums mean equal items.
        part: Takes the first and the last-plus-one item.
        seams: Items at which a part should begin or end if possible, sorted; None: anywhere.
        problems: Files and folders that could not be listed.
    """

    kind: str
    name: str
    sizes: NDArray[np.int64]
    sha256: str
    part: Callable[[int, int], Part]
    seams: NDArray[np.int64] | None = None
    problems: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.sizes)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the source, as JSON; it holds no path of this machine."""
        return {
            "kind": self.kind,
            "name": printable(self.name),
            "files": len(self),
            "bytes": int(self.sizes.sum()),
            "sha256_of_listing": self.sha256,
        }


def require_file(path: Path) -> None:
    """Raise an InputError if a path exists and is not a regular file: reading a pipe would never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file")


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def listing_sha256(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the SHA-256 of a listing, one line for each row."""
    listing = hashlib.sha256()
    for row in rows:
        listing.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
    return listing.hexdigest()
