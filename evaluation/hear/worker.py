"""The process in which one model is scored: the official embeddings and predictions runners, per task.

Started by :mod:`hear_m2d.evaluation.hear.harness` with a JSON object on standard input, so that the imports
are paid once per model. What the official tools print goes to the log; one JSON object per line on
the process's own standard output tells the parent how far it is.
"""

from __future__ import annotations

import glob
import importlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from hear_m2d.evaluation.hear.compat import EMBEDDINGS, PREDICTIONS, run_tool
from hear_m2d.evaluation.hear.tasks import TaskFolder, check_rate, find_tasks

SHOWN = re.compile(r"(Grid point|Training split) (\d+) of (\d+)")  # the kit's own log lines worth showing


def main() -> None:
    """Read the job from standard input, do it, and report on standard output."""
    job = json.load(sys.stdin)
    sys.path.append(str(Path.cwd()))  # a HEAR module beside the user, after everything installed
    with _own_output(Path(job["log"])) as output:
        try:
            tasks = find_tasks(Path(job["tasks_dir"]), job["tasks"])
            sample_rate = _check_model(job, tasks)
        except Exception as error:
            traceback.print_exc()
            _tell(output, event="refused", error=str(error), kind=type(error).__name__)
            return
        _tell(output, event="model", sample_rate=sample_rate)
        for task in tasks:
            _score_task(job, task, output)


def _check_model(job: dict[str, Any], tasks: list[TaskFolder]) -> int:
    """Load the model once: is it there, and do the tasks have audio at its rate?"""
    module = importlib.import_module(job["module"])
    positional = [job["model"]] if job["model"] is not None else []
    model = module.load_model(*positional, **job["options"])
    check_rate(tasks, model.sample_rate)
    return int(model.sample_rate)


def _score_task(job: dict[str, Any], task: TaskFolder, output: TextIO) -> None:
    name = task.name
    reset_peak_memory()
    try:
        _tell(output, event="stage", task=name, stage="embedding")
        arguments = [job["module"], "--tasks-dir", job["tasks_dir"], "--task", name]
        arguments += ["--embeddings-dir", job["embeddings"]]
        if job["model"] is not None:
            arguments += ["--model", job["model"]]
        if job["options"]:
            arguments += ["--model-options", json.dumps(job["options"])]
        run_tool(EMBEDDINGS, arguments)
        (folder,) = Path(job["embeddings"]).glob(f"*/{glob.escape(name)}/")
        _tell(output, event="stage", task=name, stage="prediction")
        with _kit_messages(output, task):
            points = ["--grid", job["grid"], "--grid-points", str(job["grid_points"])]
            run_tool(PREDICTIONS, [*points, str(folder)])
        remove_logs(folder)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        _tell(output, event="failed", task=name, error=_describe(error), peak_memory_bytes=peak_memory())
    else:
        _tell(output, event="done", task=name, peak_memory_bytes=peak_memory())


def remove_logs(folder: Path) -> None:
    """Remove the kit's training logs and checkpoints, about 50 MB for each network it trained."""
    shutil.rmtree(folder / "lightning_logs", ignore_errors=True)


def reset_peak_memory() -> None:
    """Let the kernel count this process's peak memory anew (Linux; elsewhere the peak is the process's)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger(__name__).debug("the peak memory cannot be reset on this system")


def peak_memory() -> int | None:
    """Return the peak resident memory since the last reset, in bytes, or None where unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        try:
            import resource
        except ImportError:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else None


@contextmanager
def _own_output(log: Path) -> Iterator[TextIO]:
    """Keep standard output for the reports; all that anybody prints from here on goes to the log."""
    with os.fdopen(os.dup(1), "w", buffering=1) as output, log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield output
        sys.stdout.flush()


@contextmanager
def _kit_messages(output: TextIO, task: TaskFolder) -> Iterator[None]:
    """Pass on which training the kit is at, and drop the log handlers it leaves behind."""

    class Pass(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := SHOWN.match(record.getMessage()):
                note = f"{found[1].lower()} {found[2]} of {found[3]}"
                _tell(output, event="note", task=task.name, note=note)

    kit_logger = logging.getLogger(task.task_name)
    kit_logger.addHandler(Pass())
    try:
        yield
    finally:
        for handler in list(kit_logger.handlers):
            kit_logger.removeHandler(handler)
            handler.close()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a message, see the log'}"


def _tell(output: TextIO, **event: Any) -> None:
    output.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
