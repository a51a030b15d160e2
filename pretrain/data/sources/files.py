"""Sources that are files: a folder, one file, or a CSV list."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hear_m2d.audio import read_sound
from hear_m2d.pretrain.data.sources.base import Item, Part, Skipped, Source, listing_sha256
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import read_list


@dataclass(frozen=True)
class _Files:
    """Files under a folder."""

    root: str
    names: tuple[str, ...]
    labels: tuple[str | None, ...] | None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Item]:
        labels = self.labels or (None,) * len(self.names)
        for name, label in zip(self.names, labels, strict=True):
            yield Item(name, label, partial(read_sound, os.path.join(self.root, name)))  # noqa: PTH118


def files_source(
    root: Path,
    name: str,
    kind: str,
    names: list[str],
    sizes: list[int],
    labels: list[str | None] | None = None,
    problems: tuple[Skipped, ...] = (),
) -> Source:
    """Return a source of files, named by their paths relative to ``root``."""
    folder = os.path.abspath(root)  # noqa: PTH100  # a worker may have another working directory
    sha256 = listing_sha256(zip(names, sizes, labels or [None] * len(names), strict=True))

    def part(first: int, last: int) -> Part:
        return _Files(folder, tuple(names[first:last]), tuple(labels[first:last]) if labels else None)

    return Source(kind, name, np.array(sizes, np.int64), sha256, part, problems=problems)


def list_source(path: Path) -> Source:
    """List the files of a CSV or TSV: a column of paths relative to its folder, perhaps one of labels."""
    listed = read_list(path)
    names, sizes, labels, problems = [], [], [], []
    for row in listed.rows:
        if not row.file:
            problems.append((f"{path.name}, line {row.line}", "unreadable", "it names no file"))
            continue
        names.append(row.file)
        labels.append(row.label)
        try:
            sizes.append((path.parent / row.file).stat().st_size)
        except OSError:  # reported when it is to be read
            sizes.append(0)
    if not names:
        raise InputError(f"{path} holds no audio: it names no files")
    has_labels = listed.label_column is not None
    return files_source(
        path.parent, path.name, "list", names, sizes, labels if has_labels else None, tuple(problems)
    )
