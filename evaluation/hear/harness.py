"""Score a model on HEAR tasks with the official harness: resumable, one process per model.

:func:`evaluate` gives a model's tasks to one child process (:mod:`hear_m2d.evaluation.hear.worker`) that runs
the official embeddings and predictions runners, and gathers what these leave into ``results.json``.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.hear.compat import EMBEDDINGS, PREDICTIONS
from hear_m2d.evaluation.hear.record import LOG, RunRecord, describe
from hear_m2d.evaluation.hear.requirements import check_installed
from hear_m2d.evaluation.hear.results import failed, is_embedded, is_finished, read_finished
from hear_m2d.evaluation.hear.settings import Evaluation, device_environment
from hear_m2d.evaluation.hear.tasks import TaskFolder, find_tasks
from hear_m2d.evaluation.hear.worker import remove_logs
from hear_m2d.utils.errors import InputError, WorkFailedError

EMBEDDED = "embeddings"

logger = logging.getLogger(__name__)


def evaluate(settings: Evaluation, *, progress: Callable[[str], None] = logger.info) -> dict[str, Any]:
    """Score a model on tasks, or finish what an earlier call with the same settings left.

    Args:
        settings: What to score and where to put it.
        progress: Called with a line whenever a stage begins or ends.

    Returns:
        The content of ``results.json``, as written. A task that failed says so in its ``status``.

    Raises:
        ImportError: If the official packages are missing; the message has the line to type.
        FileNotFoundError: If there are no tasks, or no such checkpoint.
        ConnectionError: If the checkpoint must be downloaded and cannot be reached.
        ValueError: If the model cannot be loaded, a task lacks its sample rate, or `out` holds something
            else. `out` is not claimed then: the corrected call may name it again.
        WorkFailedError: If the process that loads the model dies.
    """
    for tool in (EMBEDDINGS, PREDICTIONS):
        check_installed(tool)
    tasks = find_tasks(settings.tasks_dir, settings.tasks)
    facts = describe(settings)
    for note in facts["model"]["notes"]:
        progress(f"{facts['model']['path']}: {note}")
    record = RunRecord.open(settings.out, facts)
    entries = {entry["task"]: entry for entry in record.earlier_entries()}
    waiting = []
    for task in tasks:
        folder = _embedding_folder(settings.out, task)
        if folder is not None and is_embedded(folder):
            record.check_same(task)
        if folder is None or not is_finished(folder):
            waiting.append(task)
            continue
        remove_logs(folder)
        peak = entries.get(task.name, {}).get("peak_memory_bytes")
        entries[task.name] = _read(settings.out, task, folder, peak)
        progress(f"{task.name}: finished before, {_outcome(entries[task.name])}")
    numbers = {task.name: f"task {index} of {len(tasks)}" for index, task in enumerate(tasks, start=1)}
    for task, event in _run(settings, waiting, record):
        label = f"{numbers[task.name]}, {task.name}"
        if event["event"] == "stage":
            progress(f"{label}: {event['stage']}")
        elif event["event"] == "note":
            progress(f"{label}: prediction, {event['note']}")
        else:
            entries[task.name] = _entry(settings.out, task, event)
            record.save(entries.values())
            progress(f"{label}: {_outcome(entries[task.name])}")
    return record.save(entries.values())


def _run(
    settings: Evaluation, tasks: Sequence[TaskFolder], record: RunRecord
) -> Iterator[tuple[TaskFolder, dict[str, Any]]]:
    """Yield (task, event) from child processes; where one dies, its task has failed and a new one goes on."""
    left = list(tasks)
    while left:
        loaded, log = False, settings.out / LOG
        begun = log.stat().st_size if log.exists() else 0
        with record.alone() as lock, _child(settings, left, record.facts["model"]["path"], lock) as process:
            for line in process.stdout or ():
                event = json.loads(line)
                if event["event"] == "refused":
                    raise InputError(_refusal(settings, event))
                if event["event"] == "model":
                    loaded = True
                    record.remember(left, sample_rate=event["sample_rate"])
                    continue
                yield left[0], event
                if event["event"] in {"done", "failed"}:
                    left.pop(0)
            code = process.wait()
        if left:
            error = f"{_ending(code)}: {_last_line(log, begun)}"
            if not loaded:
                raise WorkFailedError(f"{settings.module} could not be loaded: {error}")
            yield left.pop(0), {"event": "failed", "error": error, "peak_memory_bytes": None}


@contextmanager
def _child(
    settings: Evaluation, tasks: Sequence[TaskFolder], model: str | None, lock: int
) -> Iterator[subprocess.Popen[str]]:
    """Start the worker on some tasks and the model's file; it is ended with us, whatever happens."""
    out = (
        settings.out.absolute()
    )  # with absolute paths the kit's own logs land inside the embeddings, not here
    job = {
        "module": settings.module,
        "model": None if model is None else str(Path(model).absolute()),
        "options": dict(settings.options),
        "tasks_dir": str(settings.tasks_dir.absolute()),
        "tasks": [task.name for task in tasks],
        "embeddings": str(out / EMBEDDED),
        "grid": settings.grid,
        "grid_points": settings.grid_points,
        "log": str(out / LOG),
    }
    with (out / LOG).open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hear_m2d.evaluation.hear.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=(lock,) if os.name == "posix" else (),
            env={**os.environ, **device_environment(settings.device)},
        )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once: the log says why
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        yield process
    finally:
        process.terminate()  # does nothing to one that has ended
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _embedding_folder(out: Path, task: TaskFolder) -> Path | None:
    """Return where the kit keeps a task's embeddings: in a folder named after module and options."""
    return next((out / EMBEDDED).glob(f"*/{glob.escape(task.name)}/"), None)


def _entry(out: Path, task: TaskFolder, event: Mapping[str, Any]) -> dict[str, Any]:
    peak = event["peak_memory_bytes"]
    folder = _embedding_folder(out, task)
    if event["event"] == "done" and folder is not None:
        return _read(out, task, folder, peak)
    return failed(task.name, metric=task.evaluation[0], error=event["error"], peak_memory_bytes=peak)


def _read(out: Path, task: TaskFolder, folder: Path, peak: int | None) -> dict[str, Any]:
    return read_finished(folder, out=out, metric=task.evaluation[0], peak_memory_bytes=peak)


def _outcome(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "ok":
        return f"{entry['metric']} {entry['score']:.4f}"
    return f"failed: {entry['error']}"


def _refusal(settings: Evaluation, event: Mapping[str, str]) -> str:
    """Return our own sentences as they are, and name the type of any other error."""
    if event["kind"] in {"ValueError", "FileNotFoundError"}:
        return event["error"]
    return f"{settings.module} could not be loaded: {event['kind']}: {event['error']}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"the harness's process ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as where memory runs out" if name == "SIGKILL" else ""
    return f"the harness's process was ended by {name}{hint}"


def _last_line(log: Path, begun: int) -> str:
    """Return the last thing a process said in the log, which may hold earlier ones before `begun`."""
    lines = log.read_bytes()[begun:].decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{said} (its log: {log})"
