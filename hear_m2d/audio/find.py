"""Find audio files under a folder, by their suffix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hear_m2d.utils.errors import InputError

# Suffixes of audio formats that libsndfile or PyAV reads. Left out: headerless .raw and .vox, whose rate and
# width are unknown, and .mat, which is mostly not sound.
# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avr", ".caf", ".flac", ".htk", ".iff",
    ".ircam", ".m4a", ".m4b", ".mka", ".mp1", ".mp2", ".mp3", ".mp4", ".mpga", ".nist", ".oga", ".ogg",
    ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".tta", ".voc", ".w64",
    ".wav", ".wave", ".wavex", ".weba", ".webm", ".wma", ".wv", ".wve", ".xi",
))
# fmt: on


def find_audio(
    folder: str | os.PathLike[str], *, on_error: Callable[[OSError], None] | None = None
) -> list[Path]:
    """Return the audio files under a folder, by their suffix.

    Symbolic links are followed, also to folders, each folder once. Names that start with a dot are skipped.
    Entries that cannot be read as a file (a pipe, a broken link) are returned too: reading them is an error.

    Args:
        folder: A folder, or a single audio file.
        on_error: Called with the error for each folder that cannot be read; by default the error is raised.

    Returns:
        Their paths, sorted by the path relative to ``folder`` with ``/`` between its parts.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: A folder cannot be read.
        InputError: ``folder`` is a file whose suffix belongs to no audio format.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; give a folder of audio files, or one audio file")
    if not root.is_dir():
        if root.suffix.lower() not in AUDIO_SUFFIXES:
            raise InputError(
                f"{root} is not an audio file by its suffix; known: {' '.join(sorted(AUDIO_SUFFIXES))}"
            )
        return [root]
    return [root / name for name, _ in walk(root, AUDIO_SUFFIXES, on_error)]


def walk(
    root: Path, suffixes: frozenset[str], on_error: Callable[[OSError], None] | None = None
) -> list[tuple[str, int]]:
    """Return the files under a folder as :func:`find_audio` does, by their relative names, with their sizes.

    Args:
        root: The folder.
        suffixes: In lower case.
        on_error: As for :func:`find_audio`.

    Returns:
        Names with ``/`` between their parts, sorted, and sizes in bytes; 0 if the size is unknown.
    """
    found: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    todo = [(os.fspath(root), "")]
    while todo:
        folder, prefix = todo.pop()
        folders = []
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder that was searched already
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if os.path.isdir(entry):  # noqa: PTH112  # False for a link to itself
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122
                        found.append((prefix + entry.name, _size(entry)))
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
        todo += sorted(folders, reverse=True)
    return sorted(found)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # reported when the file is read
        return 0
