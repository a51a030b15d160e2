"""A task archive → task folders: nothing is written outside, and nothing half unpacked looks complete."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from hear_m2d.evaluation.archives.folder import METADATA, rate_folders, read_task
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import sync_files

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class ArchiveError(InputError):
    """An archive that is damaged, hostile, or without tasks."""


def unpack(archive: Path, folder: Path, *, scratch: Path) -> list[Path]:
    """Unpack the tasks of an archive.

    The archive is unpacked into ``scratch``; the whole tasks are then renamed. A task is found by its
    ``task_metadata.json``, wherever that lies in the archive.

    Args:
        archive: A tar file, compressed or not.
        folder: Where the task folders go. If a task is there already, audio at another rate is added to it.
        scratch: A folder on the same disk; what it holds is removed, before and afterwards.

    Returns:
        The task folders, sorted.

    Raises:
        ArchiveError: The archive is damaged, holds a path, link or device that leads out of the folder, holds
            no task, or a task without some of its audio; or other labels are there already.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _extract(archive, scratch)
        tasks = sorted(file.parent for file in scratch.rglob(METADATA))
        if not tasks:
            raise ArchiveError(f"{archive} holds no task: there is no {METADATA} in it")
        if len({task.name for task in tasks}) < len(tasks) or any(
            other in task.parents for task in tasks for other in tasks
        ):
            raise ArchiveError(f"{archive} is refused: it holds a task twice, or one inside another")
        for task in tasks:
            _check_task(archive, task, scratch)
        # A power cut must not leave empty files under a final name.
        sync_files(path for task in tasks for path in task.rglob("*") if path.is_file())
        return [_install(archive, task, folder / task.name) for task in tasks]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _check_member(archive, member)
                tar.extract(member, folder, filter="data")
            # tarfile stops at the end mark: the sum of a gzip file comes after it.
            while tar.fileobj is not None and tar.fileobj.read(2**20):
                pass
    except _DAMAGE as error:
        raise ArchiveError(f"{archive} is damaged: {type(error).__name__}: {error}") from error


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise ArchiveError(f"{archive} is refused: {member.name!r} leads out of the folder")
    if not (member.isreg() or member.isdir()):
        raise ArchiveError(f"{archive} is refused: {member.name!r} is neither a file nor a folder")


def _check_task(archive: Path, task: Path, scratch: Path) -> None:
    """Raise unless a task has a folder of its own and all its audio."""
    if task == scratch or task.name.startswith("."):
        raise ArchiveError(f"{archive}: {METADATA} must be in a folder that is named after the task")
    read = read_task(task)
    if not rate_folders(task):
        raise ArchiveError(f"{archive}: {task.name} has no audio")
    for rate in rate_folders(task):
        files = read.compare(rate)
        if not files.complete:
            first = files.missing[0] if files.missing else "any file"
            raise ArchiveError(
                f"{archive}: {task.name} lacks {len(files.missing)} of {files.listed} files at {rate} Hz, "
                f"such as {first}"
            )


def _install(archive: Path, task: Path, target: Path) -> Path:
    """Rename a whole task, or add its rates to the task that is there."""
    if not target.exists():
        return task.rename(target)
    for file in sorted(task.iterdir()):
        there = target / file.name
        if file.is_file() and (not there.is_file() or there.read_bytes() != file.read_bytes()):
            raise ArchiveError(
                f"{archive}: {there} differs from the archive's. Remove {target}, or unpack elsewhere"
            )
    for rate in rate_folders(task):
        there = target / str(rate)
        if there.exists():
            there.rename(task / f"replaced-{rate}")  # removed with the scratch folder
        (task / str(rate)).rename(there)
    return target
