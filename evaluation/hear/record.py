"""The output folder of one evaluation: its identity, its tasks, and its ``results.json``.

The kit does not distinguish checkpoints: it would score the embeddings that one checkpoint left in a folder
under the name of another. A folder therefore belongs to one checkpoint with one set of options. It is claimed
after the model is loaded and the tasks are checked, so that a refused call leaves only its log.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.checkpoint.resolve import bare_name, read_weights
from hear_m2d.evaluation.archives.folder import TaskFolder
from hear_m2d.evaluation.hear.module import sha256 as sha256
from hear_m2d.evaluation.hear.requirements import package_version
from hear_m2d.evaluation.hear.settings import OURS, Evaluation, job_environments, visible_gpus
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import (
    differences,
    folder_owner,
    lock_folder,
    read_json,
    write_json,
)

RECORD, RESULTS, LOGS = "evaluation.json", "results.json", "logs"
KEYS = {"identity", "sample_rate", "tasks"}
HINT = "Give another --out"
SEED = 42  # the harness's own, set anew for each task; it takes no other


@dataclass
class RunRecord:
    """An output folder that belongs to this evaluation."""

    out: Path
    facts: dict[str, Any]
    """The head of ``results.json``: model, harness, environment."""
    sample_rate: int | None = None
    digests: dict[str, str] | None = None
    """The digest of each task when its embeddings were made."""

    @classmethod
    def open(cls, out: Path, facts: dict[str, Any]) -> RunRecord:
        """Open a folder that is new, or that an earlier call of this evaluation left; nothing is written yet.

        Raises:
            InputError: If the folder holds something else.
        """
        record = cls(out=out, facts=facts, digests={})
        record._read_folder()
        return record

    def _read_folder(self) -> None:
        """Compare the folder with this evaluation, and read what an earlier call recorded."""
        known = folder_owner(self.out, RECORD, ignore=(LOGS,))  # a refused call may leave a log
        if known is None:
            return
        if not set(known) >= KEYS:
            raise InputError(f"{self.out / RECORD} is damaged: {KEYS - set(known)} is missing. {HINT}")
        if not isinstance(known["identity"], dict) or not isinstance(known["tasks"], dict):
            raise InputError(f"{self.out / RECORD} is damaged: identity and tasks must be objects. {HINT}")
        if differing := differences(known["identity"], identity(self.facts)):
            raise InputError(f"{self.out} holds another evaluation: {differing}. {HINT}")
        self.sample_rate, self.digests = known["sample_rate"], known["tasks"]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against a second evaluation."""
        with lock_folder(self.out):
            self._read_folder()  # another evaluation may have claimed the folder since
            yield

    def has_changed(self, task: TaskFolder) -> bool:
        """Return whether a task of that name, but with other content, was embedded here before."""
        known = (self.digests or {}).get(task.name)
        return known is not None and self.sample_rate is not None and task.digest(self.sample_rate) != known

    def remember(self, tasks: Iterable[TaskFolder], *, sample_rate: int) -> None:
        """Claim the folder, and record the digests of tasks whose embeddings are about to be made."""
        self.sample_rate = sample_rate
        self.digests = {**(self.digests or {}), **{task.name: task.digest(sample_rate) for task in tasks}}
        self._write()

    def earlier_results(self) -> dict[str, Any]:
        """Return the ``results.json`` that an earlier call left, or one without tasks.

        Raises:
            InputError: If the file holds something else.
        """
        path = self.out / RESULTS
        if not path.exists():
            return {"model": {}, "tasks": []}
        results = read_json(path, hint=HINT)
        tasks = results.get("tasks")
        if not isinstance(tasks, list) or not all(
            isinstance(task, dict) and "task" in task for task in tasks
        ):
            raise InputError(f"{path} is damaged: it must hold a list of tasks. {HINT}")
        if not isinstance(results.get("model"), dict):
            raise InputError(f"{path} is damaged: it must describe the model. {HINT}")
        return results

    def save(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Write ``results.json``, tasks sorted by name, and return its content."""
        tasks = sorted(entries, key=lambda entry: str(entry["task"]))
        results = {"format": 1, **self.facts, "tasks": tasks}
        write_json(self.out / RESULTS, results)
        return results

    def _write(self) -> None:
        content = {"identity": identity(self.facts), "sample_rate": self.sample_rate, "tasks": self.digests}
        write_json(self.out / RECORD, content)


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies an evaluation: the checkpoint's content and the settings, not names or paths."""
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

    The model's path is that of the file on this machine, wherever it came from. Its ``config`` is known only
    when it is loaded.

    Raises:
        InputError: If our own module cannot read the checkpoint, or there is no such device.
    """
    import torch

    path, notes = _checkpoint(settings)
    jobs = [] if settings.ray else job_environments(settings)
    return {
        "model": {
            "name": settings.name or _default_name(settings),
            "module": settings.module,
            "path": None if path is None else str(path),
            "sha256": None if path is None else sha256(path),
            "config": None,
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
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "device": _device(settings),
            "threads": int(jobs[0]["OMP_NUM_THREADS"]) if jobs else None,
            "jobs": len(jobs) or settings.jobs or 1,
            "cpus": os.cpu_count(),
        },
    }


def _default_name(settings: Evaluation) -> str:
    if settings.model is None:
        return settings.module
    return bare_name(settings.model) if settings.module == OURS else Path(settings.model).stem


def _checkpoint(settings: Evaluation) -> tuple[Path | None, list[str]]:
    """Return the checkpoint's file, and the notes on it if the module is ours."""
    if settings.model is None:
        return None, []
    if settings.module != OURS:
        return Path(settings.model), []
    from hear_m2d.checkpoint.build import with_options
    from hear_m2d.checkpoint.card import notes_of
    from hear_m2d.model.config import Options

    options = Options.parse(settings.options)
    checkpoint = read_weights(settings.model)
    return checkpoint.path, notes_of(with_options(checkpoint, options))


def _device(settings: Evaluation) -> str:
    import torch

    if settings.ray is not None:
        return "cpu" if settings.device == "cpu" else "ray"
    if not visible_gpus(settings.device):
        return "cpu"
    # Not by pick_device(): it would use memory of the GPU, and the kit records how much of it is in use.
    return f"cuda {torch.cuda.get_device_name(int((settings.device or '').partition(':')[2] or 0))}"
