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
    """One task: its folder and what its metadata say."""

    path: Path
    task_name: str
    splits: tuple[str, ...]
    evaluation: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, by which the harness knows the task."""
        return self.path.name

    def rates(self) -> list[int]:
        """Return the sample rates, in Hz, for which there is audio of every split."""
        found = [entry for entry in self.path.iterdir() if entry.is_dir() and entry.name.isdecimal()]
        whole = [entry for entry in found if all((entry / split).is_dir() for split in self.splits)]
        return sorted(int(entry.name) for entry in whole)

    def digest(self, sample_rate: int) -> str:
        """Return a SHA-256 of the task's labels and of the names and sizes of its audio at one rate."""
        total = hashlib.sha256()
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in sorted(self.splits))):
            total.update((self.path / name).read_bytes())
        for split in sorted(self.splits):
            for file in sorted((self.path / str(sample_rate) / split).iterdir()):
                total.update(f"{split}/{file.name} {file.stat().st_size}\n".encode())
        return total.hexdigest()


def read_task(path: Path) -> TaskFolder:
    """Read one task folder.

    Raises:
        ValueError: If a file that the harness needs is missing or no such thing.
    """
    try:
        metadata: Any = json.loads((path / METADATA).read_text())
        if not isinstance(metadata, dict):
            raise InputError("it is no JSON object")
        task = TaskFolder(
            path=path,
            task_name=str(metadata["task_name"]),
            splits=_strings(metadata, "splits"),
            evaluation=_strings(metadata, "evaluation"),
        )
    except KeyError as error:
        raise InputError(f"{path / METADATA} is no HEAR task's description: it has no {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path / METADATA} is no HEAR task's description: {error}") from error
    wanted = [VOCABULARY, *(f"{split}.json" for split in task.splits)]
    if missing := [name for name in wanted if not (path / name).is_file()]:
        raise InputError(f"the task in {path} lacks {', '.join(missing)}")
    if not task.evaluation:
        raise InputError(f"{path / METADATA} names no metric under `evaluation`")
    return task


def _strings(metadata: dict[str, Any], key: str) -> tuple[str, ...]:
    value = metadata[key]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InputError(f"`{key}` must be a list of strings, not {value!r}")
    return tuple(value)


def find_tasks(tasks_dir: Path, names: Sequence[str] = ()) -> list[TaskFolder]:
    """Read the tasks of a folder, all or the named ones; whatever else lies there is left alone.

    Args:
        tasks_dir: The folder whose sub-folders are tasks.
        names: Folder names of tasks, in the order wanted; none means all, sorted.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no task.
        ValueError: If a name is unknown, or a task is broken.
    """
    if not tasks_dir.is_dir():
        raise FileNotFoundError(f"no folder of tasks at {tasks_dir}")
    known = sorted(entry.name for entry in tasks_dir.iterdir() if (entry / METADATA).is_file())
    if not known:
        raise FileNotFoundError(
            f"no task in {tasks_dir}: a task is a folder with {METADATA}.{_elsewhere(tasks_dir)}"
        )
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"task of {tasks_dir},", name, known))
    return [read_task(tasks_dir / name) for name in dict.fromkeys(names or known)]


def check_rate(tasks: Iterable[TaskFolder], sample_rate: int) -> None:
    """Raise if a task has no audio at the model's sample rate (Hz).

    Raises:
        ValueError: Names the tasks, the rates that are there, and a command that resamples.
    """
    lacking = [task for task in tasks if sample_rate not in task.rates()]
    if not lacking:
        return
    rates = "; ".join(f"{task.name} has {_rates(task)}" for task in lacking)
    raise InputError(
        f"the model hears {sample_rate} Hz, and not every task has audio at that rate: {rates}. "
        f"To resample {lacking[0].name}, type: {resample_command(lacking[0], sample_rate)}"
    )


def resample_command(task: TaskFolder, sample_rate: int) -> str:
    """Return a line for the shell that makes a task's audio at another rate, as HEAR did (ffmpeg, soxr)."""
    source = max(task.rates(), default=48000)
    target = f'"{sample_rate}/${{f#{source}/}}"'
    return (
        f"(cd -- {shlex.quote(str(task.path))} && find {source} -name '*.wav' | while read -r f; do "
        f'mkdir -p "$(dirname {target})"; ffmpeg -nostdin -v error -i "$f" '
        f"-af aresample=resampler=soxr -ar {sample_rate} {target}; done)"
    )


def _rates(task: TaskFolder) -> str:
    return " and ".join(f"{rate} Hz" for rate in task.rates()) or "no audio of all its splits"


def _elsewhere(tasks_dir: Path) -> str:
    if (tasks_dir / METADATA).is_file():
        return (
            f" This folder is a task itself: give {tasks_dir.absolute().parent} and --task {tasks_dir.name}."
        )
    for pattern in ("*/*/", "*/*/*/"):
        for found in sorted(tasks_dir.glob(pattern + METADATA)):
            return f" There is one below {found.parent.parent}: give that folder."
    return ""
