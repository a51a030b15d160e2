"""Where sounds come from: folders, lists, tar archives, Parquet, the Hugging Face hub → named items in order.

A source is listed once, before anything is decoded, and keeps little more than names and sizes. A run of its
items is a :class:`Part`, which is what a worker is handed: it reads them wherever the same paths are seen.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hear_m2d.audio import AUDIO_SUFFIXES, find_audio, read_audio
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import printable

logger = logging.getLogger(__name__)

Skipped = tuple[str, str, str]  # file, reason, detail
FILE_COLUMNS = ("file_name", "file", "path")
LABEL_COLUMNS = ("label", "labels")
_MAGIC = re.compile(r"[*?\[]")
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
_KINDS = {".csv": "list", ".tsv": "list", ".tar": "tar", ".parquet": "parquet"}


class Entry(NamedTuple):
    """One item, about to be read.

    Attributes:
        name: What it is called in shards and reports; unique in its source unless a list repeats itself.
        label: As the source has it, several separated by commas; None where there is none.
        read: Takes the sample rate wanted and returns the waveform, (samples,); raises
            :class:`~hear_m2d.audio.AudioError` or :class:`OSError`.
    """

    name: str
    label: str | None
    read: Callable[[int], NDArray[np.float32]]


class Part(Protocol):
    """A run of items; it can be pickled."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...


@dataclass(frozen=True, eq=False)
class Source:
    """A listed source.

    Attributes:
        kind: ``folder``, ``list``, ``tar``, ``parquet`` or ``hub``.
        name: The last part of its path, or its address.
        sizes: Bytes of each item, (items,); in tables an estimate.
        sha256: Of the listing: equal sums mean equal items.
        part: Takes the first and the last-plus-one item.
        seams: Items at which a part had better begin or end, sorted; None where any is as good.
        problems: What could not even be listed.
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

    def facts(self) -> dict[str, Any]:
        """Return what identifies the source, as JSON; no path of this machine."""
        return {
            "kind": self.kind,
            "name": printable(self.name),
            "files": len(self),
            "bytes": int(self.sizes.sum()),
            "sha256_of_listing": self.sha256,
        }


def open_source(source: str | os.PathLike[str]) -> Source:
    """List a source.

    Args:
        source: A folder with audio files at any depth, or else with ``.tar`` or else with ``.parquet`` files;
            one audio file; a ``.csv`` or ``.tsv`` list; a ``.tar``; a ``.parquet``; a pattern of such files;
            ``hf://datasets/owner/name[@revision][/config][:split]``.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: There is no audio in it, or it is nothing that is known.
    """
    from hear_m2d.pretrain.data.sources.tables import hub_source, parquet_source

    text = os.fspath(source)
    if address := re.match(r"hf:/+(.+)", text):  # a path object keeps one slash of two
        return hub_source(f"hf://{address[1]}")
    path = Path(text)
    if not path.exists() and _MAGIC.search(text):
        root, files = _matches(text)
        kind = _KINDS[files[0].suffix.lower()]
    elif path.is_dir():
        names, sizes = _walk(path, AUDIO_SUFFIXES)
        if names:
            return _files(path, path.resolve().name, "folder", names, sizes)
        root, files, kind = path, *_archives(path)
    else:
        root, files, kind = path.parent, [path], _KINDS.get(path.suffix.lower(), "folder")
    if kind == "tar":
        return tar_source(files, root, path.name)
    if kind == "parquet":
        return parquet_source(files, root, path.name)
    if kind == "list":
        return list_source(path)
    if path.is_file() and path.suffix.lower() in _PACKED:
        raise InputError(f"{path} is packed: unpack it, and give the folder, or a .tar without compression")
    (file,) = find_audio(path)  # which says what is wrong with any other
    return _files(root, path.name, "folder", [file.name], [file.stat().st_size])


def list_source(path: Path) -> Source:
    """List what a CSV or TSV names: a column of paths, relative to its folder; perhaps one of labels."""
    names, sizes, labels, problems = [], [], [], []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns = rows.fieldnames or []
            at = next((c for c in FILE_COLUMNS if c in columns), None)
            if at is None:
                raise InputError(
                    f"{path} names no files: it has the columns {', '.join(columns)}, and none of "
                    f"{', '.join(FILE_COLUMNS)}"
                )
            label = next((c for c in LABEL_COLUMNS if c in columns), None)
            for row in rows:
                if not row[at] or "\0" in row[at]:  # no file can have such a name
                    problems.append((f"{path.name}, line {rows.line_num}", "unreadable", "it names no file"))
                    continue
                names.append(row[at])
                labels.append((row[label] or None) if label else None)
                try:
                    sizes.append((path.parent / row[at]).stat().st_size)
                except OSError:  # told when it is to be read
                    sizes.append(0)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no list of files: {error}") from error
    if not names:
        raise InputError(f"{path} holds no audio: it names no files")
    return _files(path.parent, path.name, "list", names, sizes, labels if label else None, tuple(problems))


def tar_source(paths: list[Path], root: Path, name: str) -> Source:
    """List the audio in tar archives; a member of the same stem with .cls, .txt or .json is its label.

    Members are read in place, from their offset: nothing is unpacked.
    """
    members = _Members([], [], [], [], [])
    problems: list[Skipped] = []
    for path in paths:
        relative = path.relative_to(root).as_posix()
        if told := members.add(path, relative):
            problems.append((relative, "corrupt", told))
    if not members.names:
        told = f" ({problems[0][0]}: {problems[0][2]})" if problems else ""
        raise InputError(f"{name} holds no audio: no member ends in {' '.join(sorted(AUDIO_SUFFIXES))}{told}")
    sizes = np.array(members.sizes, np.int64)
    sums = sha256_of(zip(members.names, sizes.tolist(), members.offsets, members.labels, strict=True))
    return Source("tar", name, sizes, sums, members.part, problems=tuple(problems))


def joined(label: Any) -> str | None:
    """Return a label as text, whatever a table or a JSON has: several are separated by commas."""
    if isinstance(label, list | tuple):
        return ",".join(filter(None, map(joined, label))) or None
    return None if label is None or label == "" else str(label)


@dataclass(frozen=True)
class _Files:
    """Files under a folder."""

    root: str
    names: tuple[str, ...]
    labels: tuple[str | None, ...] | None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Entry]:
        labels = self.labels or (None,) * len(self.names)
        for name, label in zip(self.names, labels, strict=True):
            yield Entry(name, label, partial(read_audio, os.path.join(self.root, name)))  # noqa: PTH118


def _files(
    root: Path,
    name: str,
    kind: str,
    names: list[str],
    sizes: list[int],
    labels: list[str | None] | None = None,
    problems: tuple[Skipped, ...] = (),
) -> Source:
    place = os.path.abspath(root)  # noqa: PTH100  # a worker may stand somewhere else
    sums = sha256_of(zip(names, sizes, labels or [None] * len(names), strict=True))

    def part(first: int, last: int) -> Part:
        return _Files(place, tuple(names[first:last]), tuple(labels[first:last]) if labels else None)

    return Source(kind, name, np.array(sizes, np.int64), sums, part, problems=problems)


@dataclass(frozen=True)
class _TarPart:
    """Members of tar archives, by their offset."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    labels: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Entry]:
        for path, name, offset, size, label in zip(
            self.paths, self.names, self.offsets, self.sizes, self.labels, strict=True
        ):
            yield Entry(name, label, partial(_read_member, path, name, offset, size))


def _read_member(path: str, name: str, offset: int, size: int, sample_rate: int) -> NDArray[np.float32]:
    with open(path, "rb") as file:  # noqa: PTH123
        left = os.fstat(file.fileno()).st_size - offset  # a header may promise more
        file.seek(offset)
        content = file.read(max(min(size, left), 0))
    return read_audio(name, sample_rate, content=content)


@dataclass(frozen=True)
class _Members:
    """What tar archives hold."""

    paths: list[str]
    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[str | None]

    def add(self, path: Path, relative: str) -> str:
        """List one archive, and return what is wrong with it."""
        import tarfile

        place, first, labels = os.path.abspath(path), len(self.names), {}  # noqa: PTH100
        told = ""
        try:
            with tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    stem, suffix = _stem(member.name)
                    if not member.isreg() or member.issparse() or Path(member.name).name.startswith("."):
                        continue
                    if os.path.splitext(member.name)[1].lower() in AUDIO_SUFFIXES:  # noqa: PTH122
                        self.paths.append(place)
                        self.names.append(f"{relative}/{member.name}")
                        self.offsets.append(member.offset_data)
                        self.sizes.append(member.size)
                        self.labels.append(stem)  # until the label itself is known
                    elif suffix in ("cls", "txt", "json") and (file := tar.extractfile(member)):
                        labels[stem] = _label(file.read(1 << 20), suffix)
        except (tarfile.TarError, OSError, ValueError) as error:
            nothing = len(self.names) == first
            told = f"{error}; a .tar without compression is wanted" if nothing else str(error)
        self.labels[first:] = [labels.get(stem or "") for stem in self.labels[first:]]
        return told

    def part(self, first: int, last: int) -> Part:
        """Return a run of members."""
        lists = (self.paths, self.names, self.offsets, self.sizes, self.labels)
        return _TarPart(*(tuple(one[first:last]) for one in lists))  # type: ignore[arg-type]


def _stem(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part, as WebDataset does."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}/{stem}", suffix.lower()


def _label(content: bytes, suffix: str) -> str | None:
    import json

    text = content.decode("utf-8", "replace").strip()
    if suffix != "json":
        return text or None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, dict):
        found = next((found[key] for key in LABEL_COLUMNS if key in found), None)
    return None if isinstance(found, dict) else joined(found)


def _archives(folder: Path) -> tuple[list[Path], str]:
    """Return the tar or else the Parquet files under a folder that holds no audio files."""
    for suffix in (".tar", ".parquet"):
        names, _ = _walk(folder, frozenset((suffix,)))
        if names:
            return [folder / name for name in names], suffix[1:]
    raise InputError(
        f"{folder} holds no audio: no file ends in {' '.join(sorted(AUDIO_SUFFIXES))}, .tar or .parquet"
    )


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """Return the folder that a pattern's matches have in common, and the matches, all of one kind."""
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
    kinds = {path.suffix.lower() for path in found}
    if not found:
        raise FileNotFoundError(f"the pattern {pattern} matches nothing")
    if len(kinds) > 1 or not kinds <= {".tar", ".parquet"}:
        raise InputError(f"the pattern {pattern} should match .tar files or .parquet files, and no others")
    return Path(os.path.commonpath([path.parent for path in found])), found


def _walk(root: Path, suffixes: frozenset[str]) -> tuple[list[str], list[int]]:
    """Find what :func:`~hear_m2d.audio.find_audio` finds, but for millions: only names and sizes."""
    found: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    todo = [(os.fspath(root), "")]
    while todo:
        folder, prefix = todo.pop()
        facts = os.stat(folder)  # noqa: PTH116
        if (facts.st_dev, facts.st_ino) in seen:  # a link back into what was walked already
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():  # noqa: PTH122
                    found.append((prefix + entry.name, entry.stat().st_size))
        todo += sorted(folders, reverse=True)
    found.sort()
    return [name for name, _ in found], [size for _, size in found]


def sha256_of(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the sum of a listing, a line for each row."""
    listing = hashlib.sha256()
    for row in rows:
        listing.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
    return listing.hexdigest()
