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

    Args:
        folder: A folder, or a single audio file.
        on_error: Called with the error for each folder that cannot be read; by default the error is raised.

    Returns:
        Their paths, sorted by the path relative to ``folder`` with ``/`` between its parts.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: A folder cannot be read.
        InputError: It is a file whose suffix belongs to no audio format.
    """

    def fail(error: OSError) -> None:
        if on_error is None:
            raise error
        on_error(error)

    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; give a folder of audio files, or one audio file")
    if not root.is_dir():
        if root.suffix.lower() not in AUDIO_SUFFIXES:
            raise InputError(
                f"{root} is not an audio file by its suffix; known: {' '.join(sorted(AUDIO_SUFFIXES))}"
            )
        return [root]
    paths: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=fail):
        status = os.stat(parent)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link back into a folder that was visited
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(parent) / name
            if not name.startswith(".") and path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
                paths.append(path)
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())
