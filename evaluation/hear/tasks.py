"""Task folders in the HEAR on-disk format: which are there, which rates they hold, whether one changed."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"


@dataclass(frozen=True)
class TaskFolder:
    """One task: its folder and its metadata."""

    path: Path
    task_name: str
    embedding_type: str
    """``scene`` or ``event``."""
    splits: tuple[str, ...]
    evaluation: tuple[str, ...]
    """The metrics; the first is the primary one."""

    @property
    def name(self) -> str:
        """The folder's name, by which the harness knows the task."""
        return self.path.name

    def rates(self) -> list[int]:
        """Return the sample rates, in Hz, for which there is audio of every split."""
        folders = [entry for entry in self.path.iterdir() if entry.is_dir() and entry.name.isdecimal()]
        complete = [entry for entry in folders if all((entry / split).is_dir() for split in self.splits)]
        return sorted(int(entry.name) for entry in complete)

    def digest(self, sample_rate: int) -> str:
        """Return a SHA-256 of the task's labels and of the names and sizes of its audio at one rate."""
        total = hashlib.sha256()
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in sorted(self.splits))):
            total.update((self.path / name).read_bytes())
        for file in self._audio(sample_rate):
            total.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
        return total.hexdigest()

    def audio_bytes(self, sample_rate: int) -> int:
        """Return the size of the task's audio at one rate."""
        return sum(file.stat().st_size for file in self._audio(sample_rate))

    def _audio(self, sample_rate: int) -> Iterable[Path]:
        for split in sorted(self.splits):
            folder = self.path / str(sample_rate) / split
            yield from sorted(folder.iterdir() if folder.is_dir() else ())


def read_task(path: Path) -> TaskFolder:
    """Read one task folder.

    Raises:
        InputError: If a file that the harness needs is missing or holds something else.
    """
    try:
        metadata: Any = json.loads((path / METADATA).read_text())
        if not isinstance(metadata, dict):
            raise ValueError("it must hold a JSON object")
        task = TaskFolder(
            path=path,
            task_name=str(metadata["task_name"]),
            embedding_type=str(metadata.get("embedding_type")),
            splits=_strings(metadata, "splits"),
            evaluation=_strings(metadata, "evaluation"),
        )
    except KeyError as error:
        raise InputError(f"{path / METADATA} does not describe a HEAR task: {error} is missing") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path / METADATA} does not describe a HEAR task: {error}") from error
    needed = [VOCABULARY, *(f"{split}.json" for split in task.splits)]
    if missing := [name for name in needed if not (path / name).is_file()]:
        raise InputError(f"the task in {path} lacks {', '.join(missing)}")
    if not task.evaluation:
        raise InputError(f"{path / METADATA}: `evaluation` must name a metric")
    return task


def _strings(metadata: dict[str, Any], key: str) -> tuple[str, ...]:
    value = metadata[key]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"`{key}` must be a list of strings, not {value!r}")
    return tuple(value)


def find_tasks(tasks_dir: Path, names: Sequence[str] = ()) -> list[TaskFolder]:
    """Read the tasks of a folder, all or the named ones; hidden folders and other files are not tasks.

    Args:
        tasks_dir: The folder whose sub-folders are tasks.
        names: Folder names of tasks, in the order wanted; none means all, sorted.

    Raises:
        InputError: If the folder does not exist or holds no task, a name is unknown, or a task is broken.
    """
    if not tasks_dir.is_dir():
        raise InputError(f"there is no folder of tasks at {tasks_dir}")
    entries = [entry for entry in tasks_dir.iterdir() if not entry.name.startswith(".")]
    known = sorted(entry.name for entry in entries if (entry / METADATA).is_file())
    if not known:
        raise InputError(
            f"there is no task in {tasks_dir}: a task is a folder with {METADATA}.{_elsewhere(tasks_dir)}"
        )
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"task of {tasks_dir},", name, known))
    tasks, broken = [], []
    for name in dict.fromkeys(names or known):
        try:
            tasks.append(read_task(tasks_dir / name))
        except InputError as error:
            broken.append(str(error))
    if broken:
        raise InputError("; ".join(broken))
    return tasks


def check_rate(tasks: Iterable[TaskFolder], sample_rate: int) -> None:
    """Raise if a task has no audio at the model's sample rate (Hz).

    Raises:
        InputError: Names the tasks, the rates that are there, and the command that resamples.
    """
    lacking = [task for task in tasks if sample_rate not in task.rates()]
    if not lacking:
        return
    rates = "; ".join(f"{task.name} has {_rates(task)}" for task in lacking)
    folder = shlex.quote(str(lacking[0].path.parent))
    raise InputError(
        f"the model takes audio at {sample_rate} Hz, which not every task has: {rates}. "
        f"Type: hear-m2d tasks resample {folder} --rate {sample_rate}"
    )


def _rates(task: TaskFolder) -> str:
    return " and ".join(f"{rate} Hz" for rate in task.rates()) or "no audio of all its splits"


def _elsewhere(tasks_dir: Path) -> str:
    """Return a sentence with a better folder: the user may have named one too high or too low."""
    if (tasks_dir / METADATA).is_file():
        return (
            f" This folder is a task itself: give {tasks_dir.absolute().parent} and --task {tasks_dir.name}."
        )
    for pattern in ("*/*/", "*/*/*/"):
        for task in sorted(tasks_dir.glob(pattern + METADATA)):
            return f" There is one below {task.parent.parent}: give that folder."
    return ""
