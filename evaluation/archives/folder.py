"""A task folder on disk: which splits it has, which files they list, and which of these are there.

Layout: ``<task>/task_metadata.json``, ``labelvocabulary.csv``, ``<split>.json``, and the audio in
``<task>/<rate>/<split>/<file>``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def task_folders(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the task folders in a folder, sorted, or the named ones; hidden folders are not tasks.

    Args:
        folder: A folder of tasks, or one task folder.
        names: Names of task folders; none means all.

    Raises:
        InputError: The folder does not exist or holds no task, or a name is unknown.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if (folder / METADATA).is_file():
        known = {folder.resolve().name: folder}
    else:
        known = {
            entry.name: entry
            for entry in sorted(folder.iterdir())
            if not entry.name.startswith(".") and (entry / METADATA).is_file()
        }
    if not known:
        raise InputError(f"there is no task in {folder}: a task is a folder with {METADATA}")
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"task of {folder},", name, known))
    return [known[name] for name in dict.fromkeys(names or known)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds something else.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def split_files(task: Path) -> dict[str, list[str]]:
    """Return the names of the audio files that each split of a task lists.

    Raises:
        InputError: The metadata or a split's file cannot be read.
    """
    splits = read_json_object(task / METADATA).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise InputError(f"{task / METADATA}: `splits` must be a list of names")
    listed = {}
    for split in splits:
        _check_name(split, task / METADATA)
        listed[split] = list(read_json_object(task / f"{split}.json"))
        for name in listed[split]:
            _check_name(name, task / f"{split}.json")
    return listed


def rate_folders(task: Path) -> list[int]:
    """Return the sample rates, in Hz, for which a task has a folder."""
    return sorted(int(entry.name) for entry in task.iterdir() if entry.name.isdecimal() and entry.is_dir())


def compare_files(audio: Path, splits: dict[str, list[str]], rate: int) -> RateFiles:
    """Compare a folder of audio, ``<audio>/<split>/<file>``, with the files that the splits list."""
    missing: list[str] = []
    extra: list[str] = []
    for split, listed in splits.items():
        there = _file_names(audio / split)
        missing += [f"{split}/{name}" for name in listed if name not in there]
        extra += [f"{split}/{name}" for name in sorted(there.difference(listed)) if name[0] != "."]
    return RateFiles(rate, sum(map(len, splits.values())), tuple(missing), tuple(extra))


def complete_rates(task: Path) -> list[int]:
    """Return the sample rates, in Hz, at which every listed file of a task is there."""
    if not (task / METADATA).is_file():
        return []
    splits = split_files(task)
    return [rate for rate in rate_folders(task) if compare_files(task / str(rate), splits, rate).complete]


def _check_name(name: str, source: Path) -> None:
    """Refuse a name that would lead out of its folder."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise InputError(f"{source} names {name!r}, which is not a plain file name")


def _file_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
