"""A source of audio: named items in a fixed order, each with a label and a function that reads it.

A source is listed once, before anything is decoded, and keeps mainly names and sizes. A worker gets a part,
that is a run of items, and reads them on any machine that sees the same paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hear_m2d.audio import Sound
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import printable
from hear_m2d.utils.listing import join_labels

Skipped = tuple[str, str, str]  # file, reason, detail


class Item(NamedTuple):
    """One item, not read yet."""

    name: str  # in shards and reports; unique in its source unless a list repeats itself
    label: str | None  # a cell of labels (utils/listing.py)
    read: Callable[[int], Sound]  # takes the wanted sample rate; raises AudioError or OSError


Part = Iterable[Item]  # a run of items; it can be pickled, and may read its table when it is iterated


@dataclass(frozen=True, eq=False)
class Source:
    """A listed source."""

    kind: str  # folder, list, tar, parquet or hub
    name: str  # the last part of its path, or its address
    sizes: NDArray[np.int64]  # bytes of each item, (items,); an estimate in tables
    sha256: str  # of the listing: equal sums mean equal items
    part: Callable[[int, int], Part]  # takes the first and the last-plus-one item
    seams: NDArray[np.int64] | None = None  # where a part should begin or end if possible, sorted
    problems: tuple[Skipped, ...] = ()  # files and folders that could not be listed

    def __len__(self) -> int:
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


def no_audio(name: str, expected: str, problems: list[Skipped]) -> InputError:
    """Return the error about a source without audio, with its first problem."""
    problem = f" ({problems[0][0]}: {problems[0][2]})" if problems else ""
    return InputError(f"{name} holds no audio: {expected}{problem}")


def label_cell(value: Any) -> str | None:
    """Return a label, or a list of labels, as a cell of labels; a text is one already."""
    if isinstance(value, str):
        return value or None
    labels = value if isinstance(value, list | tuple) else [value]
    return join_labels(str(label) for label in labels if label is not None) or None


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def listing_sha256(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the SHA-256 of a listing, one line for each row."""
    listing = hashlib.sha256()
    for row in rows:
        listing.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
    return listing.hexdigest()
