"""Get tasks into a folder: from the public record, a mirror of it, or archives on this machine."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hear_m2d.evaluation.archives.catalog import (
    BASE_URL,
    RATE,
    RemoteFile,
    Task,
    all_tasks,
    locate_archives,
    select_tasks,
)
from hear_m2d.evaluation.archives.folder import complete_rates
from hear_m2d.evaluation.archives.transfer import fetch_file, find_damage
from hear_m2d.evaluation.archives.unpack import ArchiveError, unpack
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import lock_folder

logger = logging.getLogger(__name__)

WORK_FOLDER = ".download"
_SUFFIXES = (".tar.gz", ".tgz", ".tar")


def download_tasks(
    names: Sequence[str], folder: Path, *, base_url: str = BASE_URL, rate: int = RATE, keep: bool = False
) -> list[Path]:
    """Download and unpack tasks, in rising size; the same call continues after an interruption.

    Args:
        names: Directories, leaderboard names, ``small`` or ``all``.
        folder: Where the task folders go.
        base_url: The record, or a mirror: the address that an archive's name is added to.
        rate: A task that is complete at this rate or a higher one, in Hz, is not downloaded.
        keep: Keep the archives, in ``<folder>/.download``.

    Returns:
        The folders of the named tasks.

    Raises:
        InputError: A name is unknown, or the disk has too little space.
        WorkFailedError: A task could not be downloaded; the others were.
    """
    tasks = select_tasks(names)
    _check_folder(folder)
    wanted = [task for task in tasks if not _is_there(folder / task.directory, rate)]
    archives = locate_archives(wanted, base_url) if wanted else {}
    with _work_folder(folder) as work:
        check_space(archives, folder)

        def bring(task: Task) -> None:
            remote = archives[task]
            archive = fetch_file(remote, work / remote.name)
            try:
                unpacked = unpack(archive, folder, scratch=work / "unpacked")
            except ArchiveError as error:
                archive.unlink()
                raise WorkFailedError(f"{error}. The archive was removed") from error
            _report(unpacked)
            if not keep:
                archive.unlink()

        _run_all([partial(bring, task) for task in wanted])
    return [folder / task.directory for task in tasks]


def import_archives(source: Path, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Unpack archives of this machine: official ones, or any with task folders in it.

    Args:
        source: An archive, or a folder of archives. They are not removed.
        folder: Where the task folders go.
        names: With a folder of archives, the tasks to take, as for :func:`download_tasks`; none means all
            archives of the folder.

    Returns:
        The task folders.

    Raises:
        InputError: Nothing is at ``source``, a name is unknown, or the disk has too little space.
        WorkFailedError: An archive was refused; the others were unpacked.
    """
    if not source.exists():
        raise InputError(f"there is no {source}")
    _check_folder(folder)
    archives = _local_archives(source, names)
    done: list[Path] = []
    with _work_folder(folder) as work:
        size = sum(archive.stat().st_size for archive in archives)
        _check_free(folder, size * 2, "twice the size of the archives")

        def bring(archive: Path) -> None:
            md5 = next((task.md5 for task in all_tasks() if task.archive == archive.name), None)
            if damage := find_damage(archive, size=None, md5=md5):
                raise ArchiveError(f"{archive} {damage}")
            unpacked = unpack(archive, folder, scratch=work / "unpacked")
            _report(unpacked)
            done.extend(unpacked)

        _run_all([partial(bring, archive) for archive in archives])
    return done


def check_space(archives: dict[Task, RemoteFile], folder: Path) -> None:
    """Raise if a disk cannot hold the unpacked tasks and the largest archive.

    Raises:
        InputError: The message gives the bytes needed and free.
    """
    unpacked = sum(task.audio_gb for task in archives) * 1e9
    largest = max((file.size or task.audio_gb * 1e9 for task, file in archives.items()), default=0.0)
    _check_free(folder, unpacked + largest, "the unpacked tasks and the largest archive")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the tasks")


def _check_free(folder: Path, needed: float, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed ({what})"
        )


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Yield the hidden folder of a download, locked for one process; remove it if it is empty."""
    work = folder / WORK_FOLDER
    with lock_folder(work):
        try:
            yield work
        finally:
            if all(entry.name == ".lock" for entry in work.iterdir()):
                shutil.rmtree(work, ignore_errors=True)


def _run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Run each job, also after another job failed."""
    failures = []
    for job in jobs:
        try:
            job()
        except (InputError, WorkFailedError) as error:
            if len(jobs) > 1:
                logger.error("%s", error)
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise WorkFailedError(f"{len(failures)} of {len(jobs)} tasks failed; the first: {failures[0]}")


def _is_there(task: Path, rate: int) -> bool:
    try:
        there = max(complete_rates(task), default=0)
    except InputError as error:
        logger.warning("%s: downloaded again", error)
        return False
    if there >= rate:
        logger.info("%s is complete at %d Hz", task.name, there)
    return there >= rate


def _local_archives(source: Path, names: Sequence[str]) -> list[Path]:
    if source.is_file():
        if names:
            raise InputError(f"{source} is one archive: leave the names out, or give its folder")
        return [source]
    archives = sorted(path for path in source.iterdir() if path.name.endswith(_SUFFIXES))
    if not archives:
        raise InputError(f"there is no archive ({', '.join(_SUFFIXES)}) in {source}")
    if not names:
        return archives
    chosen = []
    for task in select_tasks(names):
        matching = [path for path in archives if task.directory in path.name]
        if not matching:
            raise InputError(f"there is no archive of {task.directory} in {source}")
        chosen += matching
    return chosen


def _report(unpacked: Sequence[Path]) -> None:
    for task in unpacked:
        rates = " and ".join(f"{rate} Hz" for rate in complete_rates(task))
        logger.info("%s: complete at %s", task, rates)
