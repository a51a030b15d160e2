"""Score a model on HEAR tasks with the official harness: resumable, several tasks at once.

:func:`evaluate` runs each task of a plan in a process of its own (:mod:`hear_m2d.evaluation.hear.worker`), on
this machine or on a Ray cluster, and gathers the results of the official tools into ``results.json``.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.hear.plan import Plan, Progress, embedding_folder, log_progress, make_job, make_plan
from hear_m2d.evaluation.hear.record import LOGS
from hear_m2d.evaluation.hear.results import failed, read_finished
from hear_m2d.evaluation.hear.settings import Evaluation, job_environments
from hear_m2d.evaluation.hear.suite import Event, run_jobs, run_jobs_on_ray


def evaluate(
    settings: Evaluation, *, progress: Progress = log_progress, plan: Plan | None = None
) -> dict[str, Any]:
    """Score a model on tasks, or finish what an earlier call with the same settings left.

    Args:
        settings: What to score and where to put it.
        progress: Called whenever a stage begins or ends.
        plan: Result of :func:`~hear_m2d.evaluation.hear.plan.make_plan`; by default it is made here.

    Returns:
        The content of ``results.json``, as written. A failed task has the ``status`` ``failed``.

    Raises:
        InputError: For the reasons of ``make_plan``. `out` is not claimed then: a corrected call may use it.
        ConnectionError: If the checkpoint must be downloaded and the server cannot be reached.
        WorkFailedError: If the process that loads the model dies, or a download fails.
    """
    plan = plan or make_plan(settings, progress=progress)
    record, entries = plan.record, plan.entries
    for task in plan.tasks:
        if task.name not in plan.steps:
            progress(task.name, f"finished before, {_outcome(entries[task.name])}")
    if not plan.steps:
        return record.save(entries.values())
    waiting = [task for task in plan.tasks if task.name in plan.steps]
    metrics = {task.name: task.metric for task in waiting}
    rate = plan.model["sample_rate"]
    with record.lock():
        for name in plan.changed:
            progress(name, "the task was changed: it is embedded again")
            if (folder := embedding_folder(settings.out, name)) is not None:
                shutil.rmtree(folder)
        record.remember(waiting, sample_rate=rate)
        # The largest task starts first, so that no long task runs alone at the end.
        waiting.sort(key=lambda task: task.audio_bytes(rate), reverse=True)
        left = len(waiting)
        with closing(_run(plan, [task.name for task in waiting])) as events:
            for name, event in events:
                if event["event"] == "stage":
                    progress(name, event["stage"])
                    continue
                left -= 1
                entries[name] = _entry(settings.out, name, metrics[name], event)
                record.save(entries.values())
                rest = f" ({left} of {len(waiting)} left)" if left else ""
                progress(name, _outcome(entries[name]) + rest)
    return record.save(entries.values())


def _run(plan: Plan, names: list[str]) -> Generator[tuple[str, Event], None, None]:
    settings = plan.settings
    logs = settings.out.absolute() / LOGS
    jobs = [make_job(plan, name, log=logs / f"{name}.log") for name in names]
    if settings.ray is None:
        return run_jobs(jobs, job_environments(settings))
    return run_jobs_on_ray(jobs, settings.ray, device=settings.device, jobs_per_machine=settings.jobs or 1)


def _entry(out: Path, task: str, metric: str, event: Event) -> dict[str, Any]:
    folder = embedding_folder(out, task)
    if event["event"] == "done" and folder is not None:
        return read_finished(folder, out=out, metric=metric, measured=event)
    error = f"{event['kind']}: {event['error'] or 'without a message'}" if event["kind"] else event["error"]
    return failed(task, metric=metric, error=f"{error} (log: {LOGS}/{task}.log)", measured=event)


def _outcome(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "ok":
        return f"{entry['metric']} {entry['score']:.4f}"
    return f"failed: {entry['error']}"
