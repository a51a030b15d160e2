"""Task folders in HEAR's format: which there are, what their files say, and which audio files are there.

Layout: ``<task>/task_metadata.json``, ``labelvocabulary.csv``, ``<split>.json`` with the labels of each file,
and the audio in ``<task>/<rate>/<split>/<file>``.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name
from hear_m2d.utils.files import read_json

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"


@dataclass(frozen=True)
class RateFiles:
    """The audio of a task at one sample rate, compared with the files that its splits list."""

    rate: int
    listed: int
    """How many files the splits list."""
    missing: tuple[str, ...]
    """``<split>/<file>`` of listed files that are not there."""
    extra: tuple[str, ...]
    """``<split>/<file>`` of files that no split lists."""

    @property
    def complete(self) -> bool:
        """Whether every listed file is there."""
        return self.listed > 0 and not self.missing


@dataclass(frozen=True)
class TaskFolder:
    """One task: its folder, its metadata and its labels."""

    path: Path
    metadata: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    """The labels of each file: ``{split: {file: labels}}``."""

    @property
    def name(self) -> str:
        """The folder's name, by which the official kit knows the task."""
        return self.path.absolute().name

    @property
    def metric(self) -> str:
        """The primary metric."""
        return str(self.metadata["evaluation"][0])

    def complete_rates(self) -> list[int]:
        """Return the sample rates, in Hz, at which every listed file is there."""
        return [rate for rate in rate_folders(self.path) if self.compare(rate).complete]

    def compare(self, rate: int) -> RateFiles:
        """Compare the audio at one rate, in Hz, with the files that the splits list."""
        return compare_files(self.path / str(rate), self.splits, rate)

    def digest(self, rate: int) -> str:
        """Return a SHA-256 of the labels, and of the names and sizes of the audio at one rate, in Hz."""
        total = hashlib.sha256()
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in sorted(self.splits))):
            total.update((self.path / name).read_bytes())
        for file in self._audio(rate):
            total.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
        return total.hexdigest()

    def audio_bytes(self, rate: int) -> int:
        """Return the size of the audio at one rate, in Hz."""
        return sum(file.stat().st_size for file in self._audio(rate))

    def _audio(self, rate: int) -> Iterable[Path]:
        for split in sorted(self.splits):
            folder = self.path / str(rate) / split
            yield from sorted(folder.iterdir() if folder.is_dir() else ())


def task_folders(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the task folders in a folder, sorted, or the named ones; hidden folders are not tasks.

    Args:
        folder: A folder of tasks, or one task folder.
        names: Names of task folders, in the order wanted; none means all.

    Raises:
        InputError: The folder does not exist or holds no task, or a name is unknown.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder of tasks at {folder}")
    if (folder / METADATA).is_file():
        known = {folder.absolute().name: folder}
    else:
        entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
        known = {entry.name: entry for entry in entries if (entry / METADATA).is_file()}
    if not known:
        raise InputError(f"there is no task in {folder}: a task is a folder with {METADATA}.{_below(folder)}")
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"task in {folder}:", name, known))
    return [known[name] for name in dict.fromkeys(names or known)]


def find_tasks(tasks_dir: Path, names: Sequence[str] = ()) -> list[TaskFolder]:
    """Read the tasks of a folder, all or the named ones, as :func:`task_folders` finds them.

    Raises:
        InputError: The folder is a task itself, or tasks are broken: all are named at once.
    """
    check_no_task(tasks_dir)
    tasks, broken = [], []
    for path in task_folders(tasks_dir, names):
        try:
            tasks.append(read_task(path))
        except InputError as error:
            broken.append(str(error))
    if broken:
        raise InputError("; ".join(broken))
    return tasks


def check_no_task(tasks_dir: Path) -> None:
    """Raise an InputError if a folder, whose sub-folders are to be tasks, is a task itself."""
    if (tasks_dir / METADATA).is_file():
        parent, name = tasks_dir.absolute().parent, tasks_dir.absolute().name
        raise InputError(f"{tasks_dir} is a task itself: give its folder, {parent}, and --task {name}")


def read_task(path: Path) -> TaskFolder:
    """Read one task folder.

    Raises:
        InputError: A file that the official kit needs is missing, or holds something else.
    """
    source = path / METADATA
    metadata = read_json_object(source)
    for key in ("splits", "evaluation"):
        value = metadata.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
            raise InputError(f"{source}: `{key}` must be a list of names, not {value!r}")
    if not isinstance(metadata.get("task_name"), str):
        raise InputError(f"{source}: `task_name` must be a name, not {metadata.get('task_name')!r}")
    names = [VOCABULARY, *(f"{_plain(split, source)}.json" for split in metadata["splits"])]
    if lacking := [name for name in names if not (path / name).is_file()]:
        raise InputError(f"the task in {path} lacks {', '.join(lacking)}")
    splits = {split: read_json_object(path / f"{split}.json") for split in metadata["splits"]}
    for split, files in splits.items():
        for name in files:
            _plain(name, path / f"{split}.json")
    return TaskFolder(path, metadata, splits)


def complete_rates(path: Path) -> list[int]:
    """Return the sample rates, in Hz, at which a task is complete; none where there is no task."""
    return read_task(path).complete_rates() if (path / METADATA).is_file() else []


def check_rate(tasks: Iterable[TaskFolder], rate: int) -> None:
    """Raise unless every task has audio at the model's sample rate, in Hz.

    Raises:
        InputError: Names the tasks, the rates that are there, and the command that resamples.
    """
    lacking = [task for task in tasks if rate not in rate_folders(task.path)]
    if not lacking:
        return
    if without := [str(task.path) for task in lacking if not rate_folders(task.path)]:
        raise InputError(f"no audio at any rate is in {', '.join(without)}: download it again")
    rates = "; ".join(
        f"{task.name} has {' and '.join(f'{rate} Hz' for rate in rate_folders(task.path))}"
        for task in lacking
    )
    folder = shlex.quote(str(lacking[0].path.parent))
    raise InputError(
        f"the model takes audio at {rate} Hz, which not every task has: {rates}. "
        f"Type: hear-m2d tasks resample {folder} --rate {rate}"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds something else.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def rate_folders(task: Path) -> list[int]:
    """Return the sample rates, in Hz, for which a task has a folder."""
    return sorted(int(entry.name) for entry in task.iterdir() if entry.name.isdecimal() and entry.is_dir())


def compare_files(audio: Path, splits: Mapping[str, Iterable[str]], rate: int) -> RateFiles:
    """Compare a folder of audio, ``<audio>/<split>/<file>``, with the files that the splits list."""
    missing: list[str] = []
    extra: list[str] = []
    listed = 0
    for split, files in splits.items():
        names = list(files)
        there = _file_names(audio / split)
        listed += len(names)
        missing += [f"{split}/{name}" for name in names if name not in there]
        extra += [f"{split}/{name}" for name in sorted(there.difference(names)) if name[0] != "."]
    return RateFiles(rate, listed, tuple(missing), tuple(extra))


def _plain(name: str, source: Path) -> str:
    """Return a file's name, or refuse one that would lead out of its folder."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise InputError(f"{source} names {name!r}, which is not a plain file name")
    return name


def _file_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


def _below(folder: Path) -> str:
    """Return a sentence with a better folder: the user may have named one too high."""
    for pattern in ("*/*/", "*/*/*/"):
        for task in sorted(folder.glob(pattern + METADATA)):
            return f" There is one below {task.parent.parent}: give that folder."
    return ""
