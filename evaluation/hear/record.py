"""The folder of one evaluation: whose it is, which tasks it has seen, and its ``results.json``.

The kit does not know one checkpoint from another: in a folder that holds the embeddings of one it would
score them again under another's name. A folder therefore belongs to one checkpoint with one set of options;
it is claimed once the model is loaded and fits, so that a refused call leaves no more than its log.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.checkpoint.resolve import bare_name, read_weights
from hear_m2d.evaluation.hear.requirements import package_version
from hear_m2d.evaluation.hear.results import write_json
from hear_m2d.evaluation.hear.settings import OURS, Evaluation
from hear_m2d.evaluation.hear.tasks import TaskFolder
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256, hold_folder

RECORD, RESULTS, LOG = "evaluation.json", "results.json", "harness.log"
SEED = 42  # the harness's own, set anew for each task; it takes no other


@dataclass
class RunRecord:
    """An output folder that belongs to this evaluation."""

    out: Path
    facts: dict[str, Any]
    """The head of ``results.json``: model, harness, environment."""
    sample_rate: int | None = None
    digests: dict[str, str] | None = None
    """What each task looked like when its embeddings were made."""

    @classmethod
    def open(cls, out: Path, facts: dict[str, Any]) -> RunRecord:
        """Find a folder free for this evaluation, or as an earlier call left it; nothing is written yet.

        Raises:
            ValueError: If the folder holds something else.
        """
        record = cls(out=out, facts=facts, digests={})
        record._look()
        return record

    def _look(self) -> None:
        """Compare the folder with this evaluation, and take over what an earlier call noted."""
        out = self.out
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file, and --out is a folder: give another --out")
        if not (out / RECORD).exists():
            others = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
            # Left by a refused or killed call (log, lock, a half-written file), or by a file manager.
            if others := [name for name in others if name != LOG and not name.startswith(".")]:
                raise InputError(
                    f"{out} is not empty and holds no evaluation, but {', '.join(others[:3])}: "
                    f"give another --out"
                )
            return
        known, ours = _known(out / RECORD), identity(self.facts)
        if differing := [key for key in ours if known["identity"].get(key) != ours[key]]:
            told = "; ".join(f"{key} {known['identity'].get(key)!r}, not {ours[key]!r}" for key in differing)
            raise InputError(f"{out} holds another evaluation: {told}. Give another --out")
        self.sample_rate, self.digests = known["sample_rate"], known["tasks"]

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the folder against a second evaluation; yields a file descriptor for child processes.

        The lock lasts until the last process that has the descriptor ends, so an orphan still holds it.
        """
        with hold_folder(self.out) as descriptor:
            self._look()  # another evaluation may have claimed the folder since
            yield descriptor

    def check_same(self, task: TaskFolder) -> None:
        """Raise a ValueError if a task of that name, but with other content, was embedded here before."""
        known = (self.digests or {}).get(task.name)
        if known is None or self.sample_rate is None:
            return
        if self.sample_rate not in task.rates() or task.digest(self.sample_rate) != known:
            raise InputError(
                f"{self.out} holds embeddings of another version of {task.name}: give another --out"
            )

    def remember(self, tasks: Iterable[TaskFolder], *, sample_rate: int) -> None:
        """Claim the folder, and note what tasks look like now that their embeddings are about to be made."""
        self.sample_rate = sample_rate
        self.digests = {**(self.digests or {}), **{task.name: task.digest(sample_rate) for task in tasks}}
        self._write()

    def earlier_entries(self) -> list[dict[str, Any]]:
        """Return the tasks of the ``results.json`` that an earlier call left, if any."""
        path = self.out / RESULTS
        if not path.exists():
            return []
        tasks = _json_object(path).get("tasks")
        if not isinstance(tasks, list) or not all(
            isinstance(task, dict) and "task" in task for task in tasks
        ):
            raise InputError(f"{path} holds something else: no list of tasks. Give another --out")
        return tasks

    def save(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Write ``results.json``, tasks sorted by name, and return its content."""
        tasks = sorted(entries, key=lambda entry: str(entry["task"]))
        results = {"format": 1, **self.facts, "tasks": tasks}
        write_json(self.out / RESULTS, results)
        return results

    def _write(self) -> None:
        content = {"identity": identity(self.facts), "sample_rate": self.sample_rate, "tasks": self.digests}
        write_json(self.out / RECORD, content)


def _known(path: Path) -> dict[str, Any]:
    """Read the record of an earlier call, and check that it is one."""
    known = _json_object(path)
    kinds = {"identity": dict, "sample_rate": int | None, "tasks": dict}
    for key, kind in kinds.items():
        if key not in known or not isinstance(known[key], kind):
            raise InputError(f"{path} holds something else: no evaluation's {key!r}. Give another --out")
    return known


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} holds something else: no JSON ({error}). Give another --out") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds something else: no JSON object. Give another --out")
    return content


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two evaluations one: the checkpoint's content, not its name or place."""
    model, harness = facts["model"], facts["harness"]
    return {
        "module": model["module"],
        "sha256": model["sha256"],
        "options": model["options"],
        "grid": harness["grid"],
        "grid_points": harness["grid_points"],
        "heareval": harness["heareval"],
        "device": facts["environment"]["device"].partition(" ")[0],
    }


def describe(settings: Evaluation) -> dict[str, Any]:
    """Return the head of ``results.json``: model, harness and environment of an evaluation.

    The model's path is that of the file on this machine, wherever it came from.

    Raises:
        FileNotFoundError: If our own module finds no such checkpoint.
        ConnectionError: If it must be downloaded and cannot be reached.
        ValueError: If our own module cannot read the checkpoint with these options, or there is no such
            device.
    """
    path, config, notes = _checkpoint(settings)
    return {
        "model": {
            "name": settings.name or _default_name(settings),
            "module": settings.module,
            "path": None if path is None else str(path),
            "sha256": None if path is None else sha256(path),
            "config": config,
            "notes": notes,
            "options": dict(settings.options),
        },
        "harness": {
            "heareval": package_version("heareval"),
            "hearvalidator": package_version("hearvalidator"),
            "grid": settings.grid,
            "grid_points": settings.grid_points,
            "seed": SEED,
        },
        "environment": _environment(settings.device),
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder."""
    if path.is_file():
        return file_sha256(path)
    total = hashlib.sha256()
    for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        total.update(f"{entry.relative_to(path).as_posix()} {sha256(entry)}\n".encode())
    return total.hexdigest()


def _default_name(settings: Evaluation) -> str:
    if settings.model is None:
        return settings.module
    return bare_name(settings.model) if settings.module == OURS else Path(settings.model).stem


def _checkpoint(settings: Evaluation) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Return the file, the configuration that our own module runs with, and what the file left open.

    Other modules keep theirs to themselves.
    """
    if settings.model is None:
        return None, None, []
    if settings.module != OURS:
        return Path(settings.model), None, []
    from hear_m2d.checkpoint.build import build_model, with_options
    from hear_m2d.checkpoint.card import notes_of
    from hear_m2d.model.config import Options

    options = Options.parse(settings.options)
    checkpoint = read_weights(settings.model)
    config = build_model(checkpoint, options).config.to_json()
    return checkpoint.path, json.loads(json.dumps(config)), notes_of(with_options(checkpoint, options))


def _environment(device: str | None) -> dict[str, Any]:
    import torch

    used = "cpu"
    if device != "cpu" and torch.cuda.is_available():
        index = int(device.partition(":")[2] or 0) if device else 0
        # asked by number: pick_device() would put memory on the GPU, and the kit records what is in use there
        if index >= (count := torch.cuda.device_count()):
            raise InputError(f"there is no device {device}: torch sees {count}, counted from cuda:0")
        used = f"cuda {torch.cuda.get_device_name(index)}"
    elif device not in {None, "cpu"}:
        raise InputError(f"the device {device} was asked for, and torch sees no GPU")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": used,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
