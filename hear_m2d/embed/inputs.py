"""Which clips `hear-m2d embed` is asked for: files, folders, globs and list files → sorted, named clips.

A clip's name is its path relative to the deepest folder that holds everything asked for. Names are
therefore unique, and outputs named after them cannot overwrite one another.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hear_m2d.audio import AUDIO_SUFFIXES, find_audio
from hear_m2d.utils.errors import InputError

_MAGIC = "*?["  # what makes a path a pattern


@dataclass(frozen=True)
class Clip:
    """One audio file to embed.

    Attributes:
        name: Relative to the root, ``/`` between its parts.
        path: Where it is, absolute.
    """

    name: str
    path: str


@dataclass(frozen=True)
class Inputs:
    """What to embed.

    Attributes:
        root: The folder that the names are relative to, absolute.
        clips: Sorted by name.
        duplicates: How many further mentions of the same files were left out.
    """

    root: str
    clips: tuple[Clip, ...]
    duplicates: int


def collect_inputs(
    inputs: Sequence[str | os.PathLike[str]], list_file: str | os.PathLike[str] | None = None
) -> Inputs:
    """Find the clips.

    Args:
        inputs: Files (of any suffix: whoever names a file means it), folders (the audio files under
            them), and patterns with ``*``, ``?``, ``[…]`` and ``**`` (matches that are audio by suffix).
        list_file: A text file with one path a line, relative ones counted from the list's own folder.

    Returns:
        The clips. A file that is mentioned twice, or reached through two links, is taken once.

    Raises:
        FileNotFoundError: An input is not there, or a pattern matches nothing. What a list names is not
            looked for here.
        ValueError: No clip at all, or a list that is none.
    """
    anchors: set[str] = set()
    found: dict[str, str] = {}  # real path: the path it was first reached by
    mentions = 0
    sources = [_expand(os.fspath(value), anchors) for value in inputs]
    if list_file is not None:
        sources.append(_listed(Path(list_file), anchors))
    for source in sources:
        for path in source:
            mentions += 1
            found.setdefault(os.path.realpath(path), path)
    if not found:
        asked = ", ".join(str(value) for value in (*inputs, list_file) if value is not None)
        raise InputError(f"no audio in {asked}: no file ends in {' '.join(sorted(AUDIO_SUFFIXES))}")
    anchors |= {os.path.dirname(path) for path in found.values()}  # noqa: PTH120  # strings: there may be millions
    try:
        root = os.path.commonpath(anchors)
    except ValueError as error:
        raise InputError(
            f"the inputs lie on different drives; embed each drive by itself ({error})"
        ) from error
    skip = len(root) + (not root.endswith(os.sep))
    clips = sorted((path[skip:].replace(os.sep, "/"), path) for path in found.values())
    return Inputs(root, tuple(Clip(name, path) for name, path in clips), mentions - len(found))


def _expand(value: str, anchors: set[str]) -> Iterator[str]:
    """Yield the absolute paths that one input means, and note the folder its names count from."""
    path = Path(value).expanduser()
    absolute = os.path.abspath(path)  # noqa: PTH100  # takes `..` out, which Path.absolute() keeps
    if not path.exists() and any(character in value for character in _MAGIC):
        yield from _matches(value, absolute, anchors)
    elif path.is_dir():
        anchors.add(absolute)
        for found in find_audio(absolute):
            yield os.fspath(found)
    elif path.exists():
        yield absolute
    else:
        raise FileNotFoundError(
            f"there is no {value}; give audio files, folders, patterns in quotes, or --list"
        )


def _matches(pattern: str, absolute: str, anchors: set[str]) -> Iterator[str]:
    parts = Path(absolute).parts
    fixed = next(i for i, part in enumerate(parts) if any(character in part for character in _MAGIC))
    anchors.add(os.path.join(*parts[:fixed]))  # noqa: PTH118
    matches = sorted(glob.glob(absolute, recursive=True))  # noqa: PTH207
    if not matches:
        raise FileNotFoundError(f"the pattern {pattern} matches nothing")
    for match in map(Path, matches):
        if match.is_dir():
            yield from (os.fspath(found) for found in find_audio(match))
        elif match.suffix.lower() in AUDIO_SUFFIXES:
            yield os.fspath(match)


def _listed(path: Path, anchors: set[str]) -> Iterator[str]:
    """Yield the paths a list file names; folders in it mean the audio under them."""
    data = path.read_bytes()
    if b"\0" in data:
        raise InputError(f"{path} is no list: it should be a text file with one path a line")
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        if not line.strip():
            continue
        value = os.fsdecode(line)
        if not os.path.isabs(value):  # noqa: PTH117
            anchors.add(folder)
        absolute = os.path.abspath(os.path.join(folder, value))  # noqa: PTH100, PTH118
        if os.path.isdir(absolute):  # noqa: PTH112
            for found in find_audio(absolute):
                yield os.fspath(found)
        else:
            yield absolute
