"""Tar archives: audio members are read in place, from their offset; nothing is unpacked."""

from __future__ import annotations

import json
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hear_m2d.audio import AUDIO_SUFFIXES, Sound, read_sound
from hear_m2d.pretrain.data.sources.base import Item, Skipped, Source, label_cell, listing_sha256, no_audio
from hear_m2d.utils.listing import LABEL_COLUMNS


class _Member(NamedTuple):
    """An audio member: where its bytes lie."""

    path: str
    name: str
    offset: int
    size: int
    label: str | None


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
        raise no_audio(name, f"no member ends in {' '.join(sorted(AUDIO_SUFFIXES))}", problems)

    def part(first: int, last: int) -> list[Item]:
        return [Item(member.name, member.label, partial(_read, member)) for member in members[first:last]]

    sizes = np.array([member.size for member in members], np.int64)
    sha256 = listing_sha256((member.name, member.size, member.offset, member.label) for member in members)
    return Source("tar", name, sizes, sha256, part, problems=tuple(problems))


def _list_members(path: Path, relative: str) -> tuple[list[_Member], str]:
    """Return an archive's audio members, and what is wrong with it; empty if nothing is."""
    members: list[tuple[str, _Member]] = []  # with the stem, until all labels are known
    labels: dict[str, str | None] = {}
    absolute, problem = os.path.abspath(path), ""  # noqa: PTH100  # a worker may have another working directory
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
                    members.append((stem, _Member(absolute, name, member.offset_data, member.size, None)))
                elif suffix.lower() in ("cls", "txt", "json") and (file := tar.extractfile(member)):
                    labels[stem] = _label(file.read(1 << 20), suffix.lower())
    except (tarfile.TarError, OSError, ValueError) as error:
        problem = str(error) if members else f"{error}; it must be a .tar without compression"
    return [member._replace(label=labels.get(stem)) for stem, member in members], problem


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
        value = json.loads(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_COLUMNS if key in value), None)
    return None if isinstance(value, dict) else label_cell(value)
