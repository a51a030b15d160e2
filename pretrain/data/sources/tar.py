"""Tar archives: audio members are read in place, from their offset; nothing is unpacked."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hear_m2d.audio import AUDIO_SUFFIXES, Sound, read_sound
from hear_m2d.pretrain.data.sources.base import Item, Skipped, Source, listing_sha256
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import LABEL_COLUMNS, join_labels


class _Member(NamedTuple):
    """An audio member: where its bytes lie."""

    path: str
    name: str
    offset: int
    size: int
    label: str | None


@dataclass(frozen=True)
class _Members:
    """A run of members."""

    members: tuple[_Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Item]:
        for member in self.members:
            yield Item(member.name, member.label, partial(_read, member))


def tar_source(paths: list[Path], root: Path, name: str) -> Source:
    """List the audio in tar archives; a member of the same stem with .cls, .txt or .json is its label."""
    members: list[_Member] = []
    problems: list[Skipped] = []
    for path in paths:
        relative = path.relative_to(root).as_posix()
        listed, problem = _list_members(path, relative)
        members += listed
        if problem:
            problems.append((relative, "corrupt", problem))
    if not members:
        why = f" ({problems[0][0]}: {problems[0][2]})" if problems else ""
        raise InputError(f"{name} holds no audio: no member ends in {' '.join(sorted(AUDIO_SUFFIXES))}{why}")
    sha256 = listing_sha256((member.name, member.size, member.offset, member.label) for member in members)
    return Source(
        "tar",
        name,
        np.array([member.size for member in members], np.int64),
        sha256,
        lambda first, last: _Members(tuple(members[first:last])),
        problems=tuple(problems),
    )


def _list_members(path: Path, relative: str) -> tuple[list[_Member], str]:
    """Return an archive's audio members, and what is wrong with it; empty if nothing is."""
    found: list[tuple[str, _Member]] = []  # with the stem, until all labels are known
    labels: dict[str, str | None] = {}
    place, problem = os.path.abspath(path), ""  # noqa: PTH100  # a worker may have another working directory
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                folder, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")  # at the first dot, as WebDataset does
                stem = f"{folder}/{stem}"
                if not member.isreg() or member.issparse() or last.startswith("."):
                    continue
                if os.path.splitext(last)[1].lower() in AUDIO_SUFFIXES:  # noqa: PTH122
                    name = f"{relative}/{member.name}"
                    found.append((stem, _Member(place, name, member.offset_data, member.size, None)))
                elif suffix.lower() in ("cls", "txt", "json") and (file := tar.extractfile(member)):
                    labels[stem] = _label(file.read(1 << 20), suffix.lower())
    except (tarfile.TarError, OSError, ValueError) as error:
        problem = str(error) if found else f"{error}; it must be a .tar without compression"
    return [member._replace(label=labels.get(stem)) for stem, member in found], problem


def _read(member: _Member, sample_rate: int) -> Sound:
    with open(member.path, "rb") as file:  # noqa: PTH123
        available = os.fstat(file.fileno()).st_size - member.offset  # a header may promise more
        file.seek(member.offset)
        content = file.read(max(min(member.size, available), 0))
    return read_sound(member.name, sample_rate, content=content)


def _label(content: bytes, suffix: str) -> str | None:
    text = content.decode("utf-8", "replace").strip()
    if suffix != "json":
        return text or None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, dict):
        found = next((found[key] for key in LABEL_COLUMNS if key in found), None)
    if isinstance(found, list):
        return join_labels(str(label) for label in found if label is not None) or None
    return str(found) if isinstance(found, str | int | float) and found != "" else None
