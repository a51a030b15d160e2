"""Run many tasks, on this machine or a Ray cluster, each in a separate process that may crash."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, MissingPackageError

INSTALL_RAY = "python -m pip install 'hear-m2d[ray]'"
MAX_TRIES = 3  # how often a task is started whose machine dies
FINAL = {"done", "failed", "model"}
"""The possible last events of a process."""
Event = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One worker process."""

    task: str
    """The task folder's name; empty: only load the model."""
    content: Mapping[str, Any]
    """What :mod:`hear_m2d.evaluation.hear.worker` reads."""
    log: Path
    """Where the output of the official tools is appended."""


def run_jobs(
    jobs: Sequence[Job], environments: Sequence[Mapping[str, str]]
) -> Generator[tuple[str, Event], None, None]:
    """Run jobs on this machine, as many at once as there are environments, and yield their events.

    Args:
        jobs: In the order in which they start.
        environments: Variables of each of the processes that run at once: its threads, its GPU.

    Yields:
        The task and an event of its process: ``stage``, then ``done`` or ``failed``. When the caller stops,
        the running processes are ended.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    events: queue.SimpleQueue[tuple[str, Event | BaseException]] = queue.SimpleQueue()
    stop = threading.Event()
    running: set[subprocess.Popen[str]] = set()
    for job in jobs:
        waiting.put(job)

    def serve(environment: Mapping[str, str]) -> None:
        while not stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                for event in run_worker(job, environment, running):
                    events.put((job.task, event))
            except BaseException as error:  # raised where the events are read
                events.put((job.task, error))
                return

    threads = [threading.Thread(target=serve, args=(environment,)) for environment in environments]
    for thread in threads:
        thread.start()
    left = len(jobs)
    try:
        while left:
            task, event = events.get()
            if isinstance(event, BaseException):
                raise event
            left -= event["event"] in FINAL
            yield task, event
    finally:
        stop.set()
        for thread in threads:
            while thread.is_alive():
                for process in list(running):
                    process.kill()
                thread.join(0.1)


def run_worker(
    job: Job, environment: Mapping[str, str], running: set[subprocess.Popen[str]] | None = None
) -> Iterator[Event]:
    """Run one worker process, and yield its events; the last one is final, even if the process dies.

    Args:
        job: The model and the task.
        environment: Variables besides those of this process.
        running: The process is in this set as long as it runs.
    """
    running = set() if running is None else running
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        begun = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hear_m2d.evaluation.hear.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    running.add(process)
    last: Event = {"event": ""}
    try:
        with suppress(BrokenPipeError):  # it died at once: the log says why
            process.stdin.write(json.dumps(job.content) + "\n")
            process.stdin.flush()  # it stays open: the process ends when this one ends
        for line in process.stdout:
            last = json.loads(line)
            yield last
        code = process.wait()
        if last["event"] not in FINAL:
            yield _failure(f"{ending(code)}: {_last_output(job.log, begun)}")
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
        running.discard(process)
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


def check_ray(address: str) -> None:
    """Raise an InputError if Ray is not installed, or a text cannot be its address; nothing is connected."""
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError(f"--ray needs Ray. Type: {INSTALL_RAY}")
    if address not in ("auto", "local") and ":" not in address:
        raise InputError(f"--ray {address} is not an address: give auto, local or HOST:PORT")


def run_jobs_on_ray(
    jobs: Sequence[Job], address: str, *, device: str | None, jobs_per_machine: int
) -> Generator[tuple[str, Event], None, None]:
    """Run jobs on a Ray cluster, and yield their last events.

    Args:
        jobs: In the order in which they start.
        address: ``auto``, ``local`` or ``HOST:PORT``.
        device: With ``cpu``, GPUs are not used; otherwise each task takes one GPU, if the cluster has any.
        jobs_per_machine: The processors of the smallest machine are shared by this many tasks.

    Audio, checkpoint and output folder must be at the same path on every machine. A task whose machine dies
    runs again on another.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    check_ray(address)
    from hear_m2d.embed.ray import cluster_at

    with cluster_at(address) as ray:
        processors = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        threads = max(1, min((n for n in processors if n), default=1) // jobs_per_machine)
        gpus = 0 if device == "cpu" else min(1, int(ray.cluster_resources().get("GPU", 0)))
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        # Ray's own retries would start a task that runs out of memory again without end.
        remote = ray.remote(max_retries=0, num_cpus=threads, num_gpus=gpus)(run_to_the_end)
        pending = {remote.remote(job, environment): job for job in jobs}
        tries: Counter[str] = Counter()
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(reference)
            try:
                yield job.task, ray.get(reference)
            except ray.exceptions.OutOfMemoryError:
                yield job.task, _failure("its machine ran out of memory, and Ray ended it")
            except ray.exceptions.RayTaskError as error:
                yield job.task, _failure(_one_line(error))
            except ray.exceptions.RayError as error:
                tries[job.task] += 1
                if tries[job.task] == MAX_TRIES:
                    yield job.task, _failure(f"its machine died {MAX_TRIES} times: {_one_line(error)}")
                    continue
                yield job.task, {"event": "stage", "stage": "its machine died: started again"}
                pending[remote.remote(job, environment)] = job


def run_to_the_end(job: Job, environment: Mapping[str, str]) -> Event:
    """Run one worker process on this machine, and return its last event."""
    *_, last = run_worker(job, environment)
    return last


def _failure(error: str) -> Event:
    return {"event": "failed", "kind": "", "error": error, "peak_memory_bytes": None}


def ending(code: int) -> str:
    """Describe how a process ended that did not finish its work, from its exit code."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (probably out of memory)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _last_output(log: Path, begun: int) -> str:
    """Return the last line of a log; lines before byte ``begun`` are those of other processes."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return line


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
