"""Files and folders: atomic writes, owners of folders, locks, JSON, checksums, names as text."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

from hear_m2d.utils.errors import InputError, WorkFailedError

TEMPORARY = ".hear-m2d-*.tmp"  # the names of temporary files, as a pattern


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary binary file beside ``path``; on success it is renamed to ``path``.

    Args:
        path: The final name; its folder is made.
        sync: Sync the file and its new name to disk. Without it, call :func:`sync_files` later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name, because one derived from a long final name may be too long for the file system.
    temporary = path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
    try:
        with temporary.open("xb") as file:  # not tempfile.mkstemp, which makes private files
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def sync_files(paths: Iterable[Path]) -> None:
    """Sync files and their names to disk.

    The files are synced at the same time, so that the file system commits its journal for many of them at
    once. That is much faster than one after another.
    """

    def sync(path: Path) -> None:
        with path.open("r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())

    paths = list(paths)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))
    for folder in {path.parent for path in paths}:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a new name survives a power cut; not every system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    """Return a file name as UTF-8 text; different names stay different.

    A byte that is not UTF-8 becomes a backslash, ``x`` and two digits. In a name that has such bytes, or
    these two characters, each backslash is doubled, so that no two names print the same.
    """
    data = name.encode("utf-8", "surrogateescape")
    text = data.decode("utf-8", "backslashreplace")
    if "\\x" in text:
        text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text


def visible_names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without dot files; empty where there is no such folder."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of an :func:`atomic_write` that was killed."""
    for path in folder.glob(TEMPORARY):
        path.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path, *, hint: str = "") -> dict[str, Any]:
    """Read a file that holds one JSON object; ``hint`` is the last sentence of the error about a damaged one.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: it must hold a JSON object ({error}). {hint}".rstrip()
        ) from error
    return content


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; a number that is not finite is a ValueError."""
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the fields of ``wanted`` that differ in ``known``, as text; empty if all are equal."""
    return "; ".join(
        f"{key} is {known.get(key)!r} there, {value!r} now"
        for key, value in wanted.items()
        if known.get(key) != value
    )


def folder_owner(folder: Path, metadata: str, *, ignore: Collection[str] = ()) -> dict[str, Any] | None:
    """Return the content of an output folder's metadata file, or None where the folder is free.

    A free folder may hold the names in ``ignore``, and dot files.

    Raises:
        InputError: ``folder`` is a file, or holds files without the metadata file, or that one is damaged.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder as --out")
    if (folder / metadata).exists():
        return read_json(folder / metadata, hint="Give another --out")
    if others := [name for name in visible_names(folder) if name not in ignore]:
        raise InputError(
            f"{folder} is not empty and has no {metadata}, but {', '.join(others[:3])}: give another --out"
        )
    return None


def claim_folder(
    folder: Path,
    metadata: str,
    content: Mapping[str, Any],
    *,
    compare: Collection[str] = (),
    ignore: Collection[str] = (),
    hint: str = "Give another --out",
) -> dict[str, Any]:
    """Take a free output folder, or continue one whose metadata file agrees.

    Args:
        folder: The output folder; made if it does not exist. Hold :func:`lock_folder` meanwhile.
        metadata: Name of the metadata file in it.
        content: JSON values, written to the metadata file of a free folder.
        compare: The fields of ``content`` that must be equal in another folder; by default all.
        ignore: Names that a free folder may hold, besides dot files.
        hint: What the user can do if the folder belongs to something else.

    Returns:
        The content of the metadata file.

    Raises:
        InputError: The folder belongs to something else; the message names what differs.
    """
    known = folder_owner(folder, metadata, ignore=ignore)
    content = json.loads(json.dumps(content))
    if known is None:
        write_json(folder / metadata, content)
        return dict(content)
    if differing := differences(known, {key: content[key] for key in compare or content}):
        raise InputError(f"{folder} belongs to another run: {differing}. {hint}")
    return known


@contextmanager
def lock_folder(folder: Path, name: str = ".lock", *, timeout_s: float = 0) -> Iterator[None]:
    """Hold a folder, which is made if it does not exist, against a second process that works in it.

    Processes with different names of the lock file work side by side. Waits up to ``timeout_s``.

    Raises:
        InputError: Another process holds it, or it is a file.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / name)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout as error:
        raise InputError(f"another process is at work in {folder}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def report_write_errors(target: Path) -> Iterator[None]:
    """Turn a write that the system refuses into a WorkFailedError that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkFailedError(
            f"writing to {target} failed: {reason}. Files already written are valid; "
            f"the same command continues"
        ) from error
