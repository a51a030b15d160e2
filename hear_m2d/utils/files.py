"""Files: written whole under their final name, or not at all; their sums, and their names as text."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".hear-m2d-*.tmp"  # the names of temporary files, as a pattern


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on success it is renamed to ``path``.

    Args:
        path: The final name; its folder is made.
        sync: Sync the file and its new name to disk. Without it, call :func:`sync_files` later.

    Yields:
        The open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name, because one derived from a long final name may be too long for the file system.
    temporary = path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
    # Not tempfile.mkstemp, which makes private files; here the system applies the umask.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def sync_files(paths: Iterable[Path]) -> None:
    """Sync files and their names to disk.

    The files are synced at the same time, so that the file system commits its journal for many of them at
    once. That is much faster than one after another.
    """
    paths = list(paths)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync_file, paths))
    for folder in {path.parent for path in paths}:
        _sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Have a new name survive a power cut; where a folder cannot be synced, its system does without."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    """Return a name as UTF-8 text; bytes that are none are spelt out, so that names stay distinct."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def visible_names(folder: Path) -> list[str]:
    """Return what lies in a folder but dot files: those a killed process or a desktop leaves behind."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, or what of it one may use, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def remove_leftovers(folder: Path) -> None:
    """Remove what an :func:`atomic_write` that was killed left behind."""
    for path in folder.glob(TEMPORARY):
        path.unlink(missing_ok=True)


@contextmanager
def hold_folder(folder: Path) -> Iterator[int]:
    """Hold a folder against a second process at work in it.

    Args:
        folder: Made if it is not there.

    Yields:
        A file descriptor; the lock lasts until the last process that inherited it ends.

    Raises:
        ValueError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            pass
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is at work in {folder}") from error
        yield file.fileno()


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())
