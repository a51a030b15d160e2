"""The process in which one task is scored by the official embeddings and predictions runners.

Started by :mod:`hear_m2d.evaluation.hear.suite`, with the job as a line of JSON on standard input. Without a
task it only loads the model and describes it. The output of the official tools goes to standard error. JSON
objects on standard output, one per line, report the progress. The process ends when its standard input is
closed, which means that the process that started it has ended.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.archives.folder import read_task
from hear_m2d.evaluation.hear.compat import EMBEDDINGS, PREDICTIONS, run_tool
from hear_m2d.evaluation.hear.settings import OURS
from hear_m2d.utils.errors import InputError

SHOWN = re.compile(r"(Grid point|Training split) (\d+) of (\d+)")  # the kit's own log lines worth showing
Report = Callable[..., None]


def main() -> None:
    """Read the job, do it, and report on standard output."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path.append(job["folder"])  # for a HEAR module in the user's working directory
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of the official tools

    def report(event: str, **fields: Any) -> None:
        output.write(json.dumps({"event": event, **fields}) + "\n")

    try:
        if job["task"] is None:
            report("model", **describe_model(job))
        else:
            report("done", **score_task(job, report))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__
        message = " ".join(str(error).split())
        report("failed", kind=kind, error=message, peak_memory_bytes=peak_memory())


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin.read(): Python could not exit while it waits
        pass
    os._exit(1)


def describe_model(job: dict[str, Any]) -> dict[str, Any]:
    """Load the model once, and return its sizes and sample rate, which are needed before any task starts."""
    import torch

    from hear_m2d.evaluation.hear.module import check_module

    model = check_module(job["module"], job["model"], job["options"])
    description = {
        "sample_rate": int(model.sample_rate),
        "scene_embedding_size": int(model.scene_embedding_size),
        "timestamp_embedding_size": int(model.timestamp_embedding_size),
        "timestamps_per_second": None,
        "config": model.config.to_json() if job["module"] == OURS else None,
    }
    seconds = 4
    module = sys.modules[job["module"]]
    try:
        with torch.no_grad():
            _, times = module.get_timestamp_embeddings(torch.zeros(1, seconds * model.sample_rate), model)
        description["timestamps_per_second"] = times.shape[1] / seconds
    except Exception:  # the tasks' own processes will report it
        traceback.print_exc()
    return description


def score_task(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """Embed a task and predict its labels with the official tools."""
    start = time.perf_counter()
    report("stage", stage="embedding")
    arguments = [job["module"], "--tasks-dir", job["tasks_dir"], "--task", job["task"]]
    arguments += ["--embeddings-dir", job["embeddings"]]
    if job["model"] is not None:
        arguments += ["--model", job["model"]]
    if job["options"]:
        arguments += ["--model-options", json.dumps(job["options"])]
    run_tool(EMBEDDINGS, arguments)
    (folder,) = Path(job["embeddings"]).glob(f"*/{glob.escape(job['task'])}/")
    peaks = {"embedding": peak_memory()}
    reset_peak_memory()
    report("stage", stage="prediction")
    _report_trainings(read_task(Path(job["tasks_dir"]) / job["task"]).metadata["task_name"], report)
    points = ["--grid", job["grid"], "--grid-points", str(job["grid_points"])]
    points += ["--in-memory", str(job["in_memory"])]
    run_tool(PREDICTIONS, [*points, str(folder)])
    remove_logs(folder)
    peaks["prediction"] = peak_memory()
    return {
        "peak_memory_bytes": max(filter(None, peaks.values()), default=None),
        "stage_peak_memory_bytes": peaks,
        "seconds": {"total": time.perf_counter() - start},
    }


def _report_trainings(task_name: str, report: Report) -> None:
    """Report the number of the kit's current training, which the kit logs under the task's name."""

    class Trainings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := SHOWN.match(record.getMessage()):
                report("stage", stage=f"prediction, {match[1].lower()} {match[2]} of {match[3]}")

    logging.getLogger(task_name).addHandler(Trainings())


def remove_logs(folder: Path) -> None:
    """Remove the kit's training logs and checkpoints, about 50 MB for each network it trained."""
    shutil.rmtree(folder / "lightning_logs", ignore_errors=True)


def reset_peak_memory() -> None:
    """Reset the kernel's record of this process's peak memory (Linux only; elsewhere nothing is reset)."""
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
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match.group(1)) * 1024 if match else None


if __name__ == "__main__":
    main()
