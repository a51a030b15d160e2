"""Which clips `hear-m2d embed` takes: files, folders, patterns and list files → sorted, named clips.

A clip's name is its path relative to the deepest folder that holds all inputs. Names are therefore unique,
and outputs named after them cannot overwrite one another.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hear_m2d.audio import AUDIO_SUFFIXES, find_audio
from hear_m2d.utils.errors import InputError

_WILDCARDS = "*?["  # characters that make a path a pattern


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
class Failure:
    """A clip that gives no embedding, or a folder that cannot be read.

    Attributes:
        name: The clip's name.
        reason: One or two words; failures are counted by it.
        detail: The rest of the sentence.
    """

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Inputs:
    """The clips to embed.

    Attributes:
        root: The folder that the names are relative to, absolute.
        clips: Sorted by name.
        duplicates: Number of repeated mentions of the same files, which are left out.
        failures: The folders that cannot be read.
    """

    root: str
    clips: tuple[Clip, ...]
    duplicates: int
    failures: tuple[Failure, ...] = ()


def collect_inputs(
    inputs: Sequence[str | os.PathLike[str]], list_file: str | os.PathLike[str] | None = None
) -> Inputs:
    """Find the clips.

    Args:
        inputs: Files (of any suffix), folders (the audio files under them), and patterns with ``*``, ``?``,
            ``[…]`` and ``**`` (matches that are audio by suffix).
        list_file: A text file with one path a line, relative ones counted from the list's own folder; or a
            pipe (``--list <(find …)``), with relative paths counted from the current folder.

    Returns:
        The clips. A file that is mentioned twice, or reached through two links, is taken once.

    Raises:
        FileNotFoundError: An input does not exist, or a pattern matches nothing. Files that a list names are
            not looked for here.
        InputError: There is no clip, or the list is not a text file.
    """
    search = _Search()
    paths: dict[str, str] = {}  # real path: the path it was first reached by
    mentions = 0
    sources = [search.expand(os.fspath(value)) for value in inputs]
    if list_file is not None:
        sources.append(search.listed(Path(list_file)))
    for source in sources:
        for path in source:
            mentions += 1
            paths.setdefault(os.path.realpath(path), path)
    if not paths:
        asked = ", ".join(str(value) for value in (*inputs, list_file) if value is not None)
        unread = "".join(f"; {error.filename} cannot be read: {error.strerror}" for error in search.errors)
        raise InputError(f"no audio in {asked}: no file ends in {' '.join(sorted(AUDIO_SUFFIXES))}{unread}")
    anchors = search.anchors | {os.path.dirname(path) for path in paths.values()}  # noqa: PTH120  # there may be millions
    try:
        root = os.path.commonpath(anchors)
    except ValueError as error:
        raise InputError(
            f"the inputs lie on different drives; embed each drive by itself ({error})"
        ) from error
    skip = len(root) + (not root.endswith(os.sep))
    clips = sorted((path[skip:].replace(os.sep, "/"), path) for path in paths.values())
    failures = tuple(
        Failure(os.path.relpath(error.filename, root), "unreadable", f"folder: {error.strerror}")
        for error in search.errors
    )
    return Inputs(root, tuple(Clip(name, path) for name, path in clips), mentions - len(paths), failures)


@dataclass
class _Search:
    """Expands inputs to absolute paths.

    Attributes:
        anchors: The folders that names may count from.
        errors: Of folders that cannot be read.
    """

    anchors: set[str] = field(default_factory=set)
    errors: list[OSError] = field(default_factory=list)

    def audio_in(self, folder: str) -> Iterator[str]:
        """Yield the audio files under a folder."""
        yield from map(os.fspath, find_audio(folder, on_error=self.errors.append))

    def expand(self, value: str) -> Iterator[str]:
        """Yield the paths that one input means."""
        path = Path(value).expanduser()
        absolute = os.path.abspath(path)  # noqa: PTH100  # takes `..` out, which Path.absolute() keeps
        if not path.exists() and any(character in value for character in _WILDCARDS):
            yield from self.matches(value, absolute)
        elif path.is_dir():
            self.anchors.add(absolute)
            yield from self.audio_in(absolute)
        elif path.exists():
            yield absolute
        else:
            raise FileNotFoundError(
                f"{value} does not exist; give audio files, folders, patterns in quotes, or --list"
            )

    def matches(self, pattern: str, absolute: str) -> Iterator[str]:
        """Yield the audio files that a pattern matches, and those in folders that it matches."""
        parts = Path(absolute).parts
        fixed = next(i for i, part in enumerate(parts) if any(character in part for character in _WILDCARDS))
        folder = os.path.join(*parts[:fixed])  # noqa: PTH118
        self.anchors.add(folder)
        if "**" in parts:  # glob skips folders that it cannot read
            for _ in os.walk(folder, onerror=self.errors.append):
                pass
        matches = sorted(glob.glob(absolute, recursive=True))  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(f"the pattern {pattern} matches nothing")
        for match in matches:
            if os.path.isdir(match):  # noqa: PTH112
                yield from self.audio_in(match)
            elif os.path.splitext(match)[1].lower() in AUDIO_SUFFIXES:  # noqa: PTH122
                yield match

    def listed(self, path: Path) -> Iterator[str]:
        """Yield the paths that a list file names; for a folder, the audio files under it."""
        is_pipe = path.exists() and not path.is_file() and not path.is_dir()  # as of `--list <(find …)`
        folder = os.getcwd() if is_pipe else os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH109, PTH120
        data = path.read_bytes()
        if b"\0" in data:
            raise InputError(f"{path} is not a list: it must be a text file with one path a line")
        for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
            if not line.strip():
                continue
            value = os.fsdecode(line)
            if not os.path.isabs(value):  # noqa: PTH117
                self.anchors.add(folder)
            absolute = os.path.abspath(os.path.join(folder, value))  # noqa: PTH100, PTH118
            if os.path.isdir(absolute):  # noqa: PTH112
                yield from self.audio_in(absolute)
            else:
                yield absolute
