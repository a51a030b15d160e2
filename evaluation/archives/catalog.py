"""The 19 tasks of HEAR as data: 20 directories, because Beehive is two.

``tasks.csv`` holds the table. Sources: the HEAR task descriptions and leaderboard (hearbenchmark.com), and
public scripts that use the archives. ``audio_gb`` is uncompressed audio at 48 kHz, computed from the number
of clips and their length; the sizes of the archives are not known. Licenses are recalled: the record's
LICENSE.txt is the authority.

The record's own list of files gives the address of an archive (Zenodo's JSON: ``files[].key``, ``.size``,
``.checksum`` as ``md5:…``, ``.links.self``), and is read tolerantly. If it cannot be read, the address is
the base address and the archive's name, and only the MD5 sums of ``tasks.csv`` are known.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name

logger = logging.getLogger(__name__)

BASE_URL = "https://zenodo.org/records/6332517/files"
"""The HEAR 2021 archives."""
RATE = 48000
"""Their sample rate, in Hz."""
RATES = (16000, 22050, 32000, 44100, 48000)
"""The sample rates, in Hz, that the HEAR API allows."""
SMALL_GB = 1.0
"""A task of the group ``small`` has at most this much audio."""
_TIMEOUT_S = 30
_RECORD = re.compile(r"(.*)/records/(\d+)(?:/files)?")


@dataclass(frozen=True)
class Task:
    """One task directory of HEAR."""

    directory: str
    """The folder's name, ``<task>-<version>-<mode>``, by which the official kit knows the task."""
    leaderboard: str
    """The name of its column of the leaderboard."""
    leaderboard_id: str
    """Its key in the leaderboard's table."""
    embedding_type: str
    """``scene`` (one embedding per clip) or ``event`` (timestamp embeddings)."""
    prediction_type: str
    """``multiclass`` or ``multilabel``."""
    classes: int
    sample_duration: float | None
    """The length of every clip, in seconds; None: clips of 0.3 to 30 s."""
    folds: int
    """How many folds; 0 means the splits train, valid, test."""
    clips: int
    audio_gb: float
    """Uncompressed 16-bit audio at 48 kHz, in 10^9 bytes."""
    evaluation: tuple[str, ...]
    """The metrics; the first is the primary one."""
    md5: str | None
    """Of the archive, where it is known."""
    license: str
    """Recalled, not checked."""

    @property
    def archive(self) -> str:
        """The archive's name in the public record: all names that were seen follow this pattern."""
        return f"hear2021-{self.directory}-{RATE}.tar.gz"


@cache
def all_tasks() -> tuple[Task, ...]:
    """Return the 20 task directories, in rising size."""
    table = resources.files("hear_m2d.evaluation.archives").joinpath("tasks.csv").read_text(encoding="utf-8")
    tasks = [_task(row) for row in csv.DictReader(table.splitlines())]
    return tuple(sorted(tasks, key=lambda task: (task.audio_gb, task.directory)))


def select_tasks(names: Sequence[str]) -> list[Task]:
    """Return the tasks of some names, in rising size.

    Args:
        names: Each a directory, the leaderboard's name or key, ``small`` (at most 1 GB of audio) or ``all``.
            Case, spaces and punctuation do not matter.

    Raises:
        InputError: A name is unknown; the message gives the nearest ones.
    """
    wanted = {task.directory for name in names for task in _named(name)}
    return [task for task in all_tasks() if task.directory in wanted]


def task_of_directory(directory: str) -> Task | None:
    """Return the task of a directory's name, or None if HEAR has no such task."""
    return next((task for task in all_tasks() if task.directory == directory), None)


def alteration(directory: str, clips: int) -> str:
    """Return how a folder with the name of a HEAR task differs from the task; empty if it does not.

    Args:
        directory: The folder's name.
        clips: How many clips its splits have. The catalog's number is that of the task's description, so a
            difference of 5 % is allowed.
    """
    task = task_of_directory(directory)
    if task is None or abs(clips - task.clips) <= 0.05 * task.clips:
        return ""
    return f"{clips} clips, where HEAR has {task.clips}"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download."""

    name: str
    url: str
    size: int | None = None
    """In bytes, where it is known."""
    md5: str | None = None
    """32 lower-case hexadecimal digits, where it is known."""


def locate_archives(tasks: Sequence[Task], base_url: str = BASE_URL) -> dict[Task, RemoteFile]:
    """Return where the archive of each task is, with its size and MD5 where they are known.

    Args:
        tasks: The tasks.
        base_url: The address that an archive's name is added to. If it is a record's address
            (``…/records/<number>`` or ``…/records/<number>/files``), the record's file list is read from
            ``…/api/records/<number>``.
    """
    base_url = base_url.rstrip("/")
    listed: dict[str, RemoteFile] = {}
    if record := _RECORD.fullmatch(base_url):
        base_url = f"{record[1]}/records/{record[2]}/files"
        listed = _read_list(f"{record[1]}/api/records/{record[2]}", base_url)
    return {task: _archive(task, base_url, listed) for task in tasks}


def parse_list(content: Any, base_url: str) -> dict[str, RemoteFile]:
    """Return the files of a record's description, by name; entries of another form are left out."""
    files = content.get("files") if isinstance(content, dict) else None
    if isinstance(files, dict):  # another form of the same service: {"files": {"entries": {name: {…}}}}
        files = files.get("entries", files)
    if isinstance(files, dict):
        files = files.values()
    found = [_entry(entry, base_url) for entry in files] if isinstance(files, Iterable) else []
    return {file.name: file for file in found if file is not None}


def _named(name: str) -> Iterable[Task]:
    if name == "all":
        return all_tasks()
    if name == "small":
        return [task for task in all_tasks() if task.audio_gb <= SMALL_GB]
    key = _plain(name)
    tasks = [task for task in all_tasks() if key in map(_plain, _names(task))]
    if not tasks:
        known = {known for task in all_tasks() for known in (task.directory, task.leaderboard)}
        raise InputError(unknown_name("task", name, {*known, "small", "all"}))
    return tasks


def _names(task: Task) -> tuple[str, ...]:
    return task.directory, task.leaderboard, task.leaderboard_id, task.leaderboard.removesuffix(" Task 2")


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _task(row: dict[str, str]) -> Task:
    return Task(
        directory=row["directory"],
        leaderboard=row["leaderboard"],
        leaderboard_id=row["leaderboard_id"],
        embedding_type=row["embedding_type"],
        prediction_type=row["prediction_type"],
        classes=int(row["classes"]),
        sample_duration=float(row["sample_duration"]) if row["sample_duration"] else None,
        folds=int(row["folds"]),
        clips=int(row["clips"]),
        audio_gb=float(row["audio_gb"]),
        evaluation=tuple(row["evaluation"].split()),
        md5=row["md5"] or None,
        license=row["license"],
    )


def _archive(task: Task, base_url: str, listed: dict[str, RemoteFile]) -> RemoteFile:
    near = [name for name in listed if task.directory in name and name.endswith((".tar.gz", ".tgz"))]
    file = listed.get(task.archive) or (listed[near[0]] if near else None)
    if file is None:
        return RemoteFile(task.archive, f"{base_url}/{task.archive}", md5=task.md5)
    return RemoteFile(file.name, file.url, file.size, file.md5 or task.md5)


def _read_list(url: str, base_url: str) -> dict[str, RemoteFile]:
    import requests
    from urllib3.util import Retry

    retry = Retry(3, status_forcelist=(429, 500, 502, 503, 504), backoff_factor=1)
    try:
        with requests.Session() as session:
            session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retry))
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
            response = session.get(url, headers={"Accept": "application/json"}, timeout=_TIMEOUT_S)
            response.raise_for_status()
            listed = parse_list(response.json(), base_url)
    except (requests.RequestException, ValueError) as error:
        logger.warning("the list of files at %s cannot be read (%s)", url, type(error).__name__)
        return {}
    if not listed:
        logger.warning("the list of files at %s names no files", url)
    return listed


def _entry(entry: Any, base_url: str) -> RemoteFile | None:
    if not isinstance(entry, dict):
        return None
    name = entry.get("key") or entry.get("filename")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        return None
    size = entry.get("size", entry.get("filesize"))
    md5 = str(entry.get("checksum") or "").lower().removeprefix("md5:")
    links = entry.get("links")
    links = links if isinstance(links, dict) else {}
    urls = [str(links.get(key)) for key in ("content", "download", "self")]
    return RemoteFile(
        name=name,
        url=next((url for url in urls if url.startswith(("https://", "http://"))), f"{base_url}/{name}"),
        size=size if type(size) is int and size >= 0 else None,
        md5=md5 if re.fullmatch(r"[0-9a-f]{32}", md5) else None,
    )
