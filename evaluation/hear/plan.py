"""The plan of an evaluation: every check of model, tasks, output folder and disk, before any work."""

from __future__ import annotations

import dataclasses
import glob
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hear_m2d.evaluation.archives.folder import (
    METADATA,
    TaskFolder,
    check_no_task,
    check_rate,
    complete_rates,
    find_tasks,
    read_task,
)
from hear_m2d.evaluation.hear.compat import EMBEDDINGS, PREDICTIONS
from hear_m2d.evaluation.hear.record import RunRecord, describe
from hear_m2d.evaluation.hear.requirements import check_installed
from hear_m2d.evaluation.hear.results import grid_mark, is_embedded, is_finished, read_finished
from hear_m2d.evaluation.hear.settings import Evaluation, job_environments
from hear_m2d.evaluation.hear.suite import Job, check_ray, run_worker
from hear_m2d.evaluation.hear.worker import remove_logs
from hear_m2d.utils.commands import aligned
from hear_m2d.utils.errors import InputError, WorkFailedError

if TYPE_CHECKING:
    from hear_m2d.evaluation.archives.catalog import Task
    from hear_m2d.evaluation.archives.estimate import TaskSize

EMBEDDED = "embeddings"
PROGRAMS_BYTES = 1_500_000_000  # bytes of one process (torch, Lightning, the kit and a small model), measured

logger = logging.getLogger(__name__)

Progress = Callable[[str, str], None]
"""A function called when a step begins or ends, with the task's folder name (empty: no task) and a text."""


def log_progress(task: str, text: str) -> None:
    """Log a step that begins or ends."""
    logger.info("%s%s", f"{task}: " if task else "", text)


@dataclass
class Plan:
    """The work that is left in an evaluation; all checks have passed."""

    settings: Evaluation
    record: RunRecord
    tasks: list[TaskFolder] = field(default_factory=list)
    """The requested tasks that exist."""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entries of results.json: finished tasks, and other tasks of an earlier call."""
    steps: dict[str, str] = field(default_factory=dict)
    """The remaining steps of each unfinished task, in words: ``embed, predict``."""
    changed: set[str] = field(default_factory=set)
    """Tasks that were changed after they were embedded, and are embedded again."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Description of the loaded model; empty if no work is left."""
    disk_bytes: dict[str, int] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """Needs of each unfinished task; the memory is that of its process alone."""


def make_plan(settings: Evaluation, *, progress: Progress = log_progress, dry_run: bool = False) -> Plan:
    """Check everything before any work, fetch tasks if requested, and determine what is left to do.

    Args:
        settings: What to score and where to put it.
        progress: Called with notes and warnings.
        dry_run: Write nothing: list the tasks that would be fetched among the steps.

    Raises:
        InputError: If a package, the checkpoint or a task is missing or broken, the model cannot be loaded, a
            task lacks its sample rate, `out` holds something else, or the disk is too small.
        ConnectionError: If the checkpoint must be downloaded and the server cannot be reached.
        WorkFailedError: If the process that loads the model dies, or a download fails.
    """
    for tool in (EMBEDDINGS, PREDICTIONS):
        check_installed(tool)
    if settings.ray is not None:
        check_ray(settings.ray)
    if settings.out.resolve() == settings.tasks_dir.resolve():
        raise InputError(f"{settings.out} is the folder of the tasks: give another --out")
    official: dict[str, Task | None] = {}
    if settings.download:
        official = _official_tasks(settings)
    else:
        find_tasks(settings.tasks_dir, settings.tasks)
    facts = describe(settings)
    for note in facts["model"]["notes"]:
        progress("", f"{facts['model']['path']}: {note}")
    plan = Plan(settings, RunRecord.open(settings.out, facts))
    names = list(settings.tasks)
    if settings.download:
        plan.model = _load_model(plan)
        names = _fetch(plan, official, dry_run=dry_run)
    plan.tasks = find_tasks(settings.tasks_dir, names) if names or not plan.steps else []
    _find_steps(plan)
    if waiting := [task for task in plan.tasks if task.name in plan.steps]:
        plan.model = plan.model or _load_model(plan)
        _check_tasks(plan, waiting, progress)
        for task in waiting:
            _estimate_folder(plan, task)
    if plan.steps:
        plan.record.facts["model"]["config"] = plan.model["config"]
        _check_resources(plan, progress)
    return plan


def plan_table(plan: Plan) -> str:
    """Return what a plan would do, one line per task, and what it needs."""
    settings, harness = plan.settings, plan.record.facts["harness"]
    rows: list[tuple[str, ...]] = [("task", "to do", "disk", "memory")]
    for name in sorted({*plan.steps, *(task.name for task in plan.tasks)}):
        sizes = [
            f"{need[name] / 1e9:.2f} GB" if name in need else "–"
            for need in (plan.disk_bytes, plan.memory_bytes)
        ]
        rows.append((name, plan.steps.get(name, "nothing: finished"), *sizes))
    lines = aligned(rows)
    environment = plan.record.facts["environment"]
    where = (
        f"on {settings.ray} (Ray)"
        if settings.ray
        else f"on {environment['device']}, threads of each: {environment['threads']}"
    )
    lines.append(
        f"{environment['jobs']} at once {where}; {sum(plan.disk_bytes.values()) / 1e9:.2f} GB of disk in all"
    )
    return "\n".join([*lines, *filter(None, [grid_mark(harness)])])


def embedding_folder(out: Path, task: str) -> Path | None:
    """Return where the kit keeps a task's embeddings: in a folder named after module and options."""
    return next((out / EMBEDDED).glob(f"*/{glob.escape(task)}/"), None)


def make_job(plan: Plan, task: str, *, log: Path) -> Job:
    """Return the job of one task, or, if the name is empty, the job that only loads the model.

    Paths are absolute: with a relative one the kit would write its training logs to the working directory.
    """
    settings, model = plan.settings, plan.record.facts["model"]["path"]
    content = {
        "module": settings.module,
        "model": None if model is None else str(Path(model).absolute()),
        "options": dict(settings.options),
        "tasks_dir": str(settings.tasks_dir.absolute()),
        "task": task or None,
        "embeddings": str(settings.out.absolute() / EMBEDDED),
        "grid": settings.grid,
        "grid_points": settings.grid_points,
        "in_memory": settings.in_memory,
        "folder": str(Path.cwd()),
    }
    return Job(task, content, log)


def _load_model(plan: Plan) -> dict[str, Any]:
    """Load the model once, in a separate process, to get its sizes and sample rate before any task starts."""
    settings = plan.settings
    (environment, *_) = job_environments(dataclasses.replace(settings, device="cpu", jobs=1))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "model.log"
        *_, event = run_worker(make_job(plan, "", log=log), environment)
        logger.debug("%s", log.read_text(errors="replace"))
    if event["event"] == "model":
        return event
    if event["kind"] in {"InputError", "FileNotFoundError"}:
        raise InputError(event["error"])  # the message is a complete sentence
    kind = "" if event["kind"] in {"", "ValueError", "ModuleNotFoundError"} else f"{event['kind']}: "
    failure = WorkFailedError if not event["kind"] else InputError  # without a kind, the process died
    raise failure(f"{settings.module} could not be loaded: {kind}{event['error']}")


def _official_tasks(settings: Evaluation) -> dict[str, Task | None]:
    """Return the folder names of the requested tasks, with their rows of the catalog if they are HEAR's."""
    from hear_m2d.evaluation.archives.catalog import select_tasks, task_of_directory

    check_no_task(settings.tasks_dir)
    if not settings.tasks:
        raise InputError("with --download, name the tasks: --task NAME, --task small or --task all")
    tasks: dict[str, Task | None] = {}
    for name in settings.tasks:
        if (settings.tasks_dir / name / METADATA).is_file() and task_of_directory(name) is None:
            tasks[name] = None
        else:
            tasks |= {task.directory: task for task in select_tasks([name])}
    return tasks


def _fetch(plan: Plan, tasks: Mapping[str, Task | None], *, dry_run: bool) -> list[str]:
    """Download and resample missing tasks; return the folder names of all tasks that exist afterwards."""
    from hear_m2d.evaluation.archives.download import download_tasks
    from hear_m2d.evaluation.archives.estimate import size_of_folder, size_of_task
    from hear_m2d.evaluation.archives.resample import resample_tasks

    settings, rate = plan.settings, plan.model["sample_rate"]
    folder, base_url = settings.tasks_dir, settings.download or ""
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        official = [name for name, task in tasks.items() if task is not None]
        download_tasks(official, folder, base_url=base_url, rate=rate)
        resample_tasks(folder, rate, names=list(tasks))
        return list(tasks)
    present = []
    for name, task in tasks.items():
        highest = max(rates := complete_rates(folder / name), default=0)
        if rate in rates or (task is None and highest < rate):  # the second is an error of the check
            present.append(name)
        elif task is not None and highest < rate:
            plan.steps[name] = "download, resample, embed, predict"
            _estimate(plan, name, size_of_task(task))
            plan.disk_bytes[name] += int(task.audio_gb * 1e9 * (1 + rate / 48000))
        else:
            plan.steps[name] = "resample, embed, predict"
            _estimate(plan, name, size_of_folder(read_task(folder / name), highest))
    return present


def _find_steps(plan: Plan) -> None:
    """Determine which tasks are finished, and which steps the others still need."""
    earlier = plan.record.earlier_results()
    plan.record.facts["model"]["config"] = earlier["model"].get("config")
    plan.entries = {entry["task"]: entry for entry in earlier["tasks"]}
    out = plan.settings.out
    for task in plan.tasks:
        folder = embedding_folder(out, task.name)
        entry = plan.entries.get(task.name, {})
        embedded = folder is not None and is_embedded(folder)
        if embedded and plan.record.has_changed(task):
            if entry.get("status") == "ok":
                raise InputError(
                    f"{out} holds the score of another version of {task.name}: give another --out, or the "
                    "files that were scored"
                )
            plan.changed.add(task.name)
            embedded = False
        if folder is not None and embedded and is_finished(folder):
            remove_logs(folder)
            plan.entries[task.name] = read_finished(folder, out=out, metric=task.metric, measured=entry)
        else:
            plan.steps[task.name] = "predict" if embedded else "embed, predict"


def _check_tasks(plan: Plan, waiting: list[TaskFolder], progress: Progress) -> None:
    """Check the unfinished tasks; all problems are reported at once."""
    from hear_m2d.evaluation.archives.check import check_tasks, has_errors, summarize

    rate = plan.model["sample_rate"]
    findings = check_tasks(plan.settings.tasks_dir, [task.name for task in waiting], rate)
    for line in summarize(findings):
        progress("", line)
    check_rate(waiting, rate)
    if has_errors(findings):
        broken = sorted({finding.task for finding in findings if finding.level == "error"})
        raise InputError(
            f"not every task can be scored; correct {', '.join(broken)} as listed above, or name the other "
            "tasks with --task"
        )


def _estimate_folder(plan: Plan, task: TaskFolder) -> None:
    from hear_m2d.evaluation.archives.estimate import size_of_folder

    _estimate(plan, task.name, size_of_folder(task, plan.model["sample_rate"]))
    if "embed" not in plan.steps[task.name]:
        plan.disk_bytes[task.name] = 0


def _estimate(plan: Plan, task: str, size: TaskSize) -> None:
    from hear_m2d.evaluation.archives.estimate import estimate_embeddings

    need = estimate_embeddings(
        size,
        scene_size=plan.model["scene_embedding_size"],
        timestamp_size=plan.model["timestamp_embedding_size"],
        timestamps_per_second=plan.model["timestamps_per_second"] or 0,
        grid_points=plan.settings.grid_points,
        in_memory=plan.settings.in_memory,
    )
    plan.disk_bytes[task] = need.disk_bytes
    plan.memory_bytes[task] = need.memory_bytes + PROGRAMS_BYTES


def _check_resources(plan: Plan, progress: Progress) -> None:
    """A disk that is too small is an error; too little memory is a warning."""
    import torch

    from hear_m2d.utils.device import free_memory

    settings, needed = plan.settings, sum(plan.disk_bytes.values())
    folder = next(path for path in (settings.out, *settings.out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{needed / 1e9:.1f} GB of disk are needed, and {free / 1e9:.1f} GB are free for {settings.out}: "
            "give another --out, or fewer tasks"
        )
    if settings.ray:
        return
    jobs = len(job_environments(settings))
    memory = sum(sorted(plan.memory_bytes.values(), reverse=True)[:jobs])
    available = free_memory(torch.device("cpu"))
    if available is not None and memory > available:
        advice = "; with --in-memory false prediction reads from disk" if settings.in_memory else ""
        progress(
            "",
            f"warning: about {memory / 1e9:.1f} GB of memory are needed (--jobs {jobs}), and "
            f"{available / 1e9:.1f} GB are free" + advice,
        )
