"""`hear-m2d embed --ray`: the same shards, written on many machines.

Each shard is a Ray task that writes its file. Ray retries a task on another machine if its machine fails; a
shard that is written twice has the same content. Audio, checkpoint and output must lie where every machine
sees them under the same path.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hear_m2d.embed.decode import read_clips
from hear_m2d.embed.embedder import Embedder, ModelSpec
from hear_m2d.embed.inputs import Clip, Inputs
from hear_m2d.embed.loop import Loop
from hear_m2d.embed.run import Summary, summarize
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.files import differences
from hear_m2d.utils.progress import ProgressBar

INSTALL = "pip install 'hear-m2d[ray]'"
_RETRIES = 10  # retries of a shard whose machine or process fails
_CPUS = 4  # that one model on a CPU uses


def embed_on_ray(
    inputs: Inputs,
    spec: ModelSpec,
    out: str | os.PathLike[str],
    *,
    address: str,
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
    shard_clips: int | None = None,
) -> Summary:
    """Embed clips on a Ray cluster, or continue an earlier run, also one that was started without Ray.

    Args:
        inputs: From :func:`~hear_m2d.embed.inputs.collect_inputs`; paths that hold on every machine.
        spec: The model, and what to compute.
        out: A folder for ``part-000000.parquet``, …, in the order of the names.
        address: ``auto`` (the cluster this machine belongs to), ``local`` (one made for this call), or
            ``HOST:PORT``.
        workers: Number of threads that decode beside each model; 1 by default.
        force: Start again: replace what an earlier run wrote there.
        progress: Show a progress bar.
        shard_clips: The largest number of clips in a file; by default 64 to 512.

    Returns:
        What was done; its seconds are those of the whole run, its waiting time is the mean over the models.

    Raises:
        MissingPackageError: ray is not installed.
        InputError: The folder belongs to something else, or there is no such model or option, or no cluster
            answers.
        WorkFailedError: Nothing could be embedded, or the work on the cluster failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError(f"--ray needs Ray. Type: {INSTALL}", name="ray")
    from hear_m2d.embed.parquet import Shards

    out = Path(os.path.abspath(out))  # noqa: PTH100
    embedder = Embedder(dataclasses.replace(spec, device="cpu"))
    facts = embedder.facts()
    if Path(spec.name).exists():  # relative to this process; the others may work elsewhere
        spec = dataclasses.replace(spec, name=os.path.abspath(spec.name))  # noqa: PTH100
    if not spec.device.startswith("cpu"):  # a task sees only its own GPU
        spec = dataclasses.replace(spec, device=spec.device.partition(":")[0])
    start = time.perf_counter()
    with (
        Shards.open(out, spec.what, inputs, facts, force=force, shard_clips=shard_clips) as shards,
        ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar,
    ):
        todo = shards.todo()
        already, failures = shards.done_before(todo)
        bar.update(already + len(failures))
        total = Loop(embedder, out)
        if todo:
            jobs = {os.fspath(shards.path(index)): shards.clips(index) for index in todo}
            with cluster_at(address) as ray:
                for path, counts in _make(ray, jobs, (spec, facts, shards.schema, workers or 1)):
                    bar.update(len(jobs[path]))
                    for name, value in counts.items():
                        setattr(total, name, getattr(total, name) + value)
        failures = [*inputs.failures, *failures, *total.failures]
        report = shards.finish(failures)
        waited = total.waited_s / total.seconds if total.seconds else 0.0
        total.seconds = time.perf_counter() - start
        total.waited_s = waited * total.seconds
        return summarize(total, already, failures, report)


_embedders: dict[str, Embedder] = {}  # of a worker process: one shard after another uses the same model


def _make_shard(
    path: str, clips: Sequence[Clip], spec: ModelSpec, facts: Mapping[str, Any], schema: Any, workers: int
) -> dict[str, Any]:
    """Make one shard in a worker process, and return what was counted."""
    from hear_m2d.embed.parquet import write_shard

    if (key := repr(spec)) not in _embedders:
        embedder = Embedder(spec)
        here = embedder.facts()
        if differing := differences(facts, {name: here[name] for name in ("sha256", "version")}):
            raise InputError(f"the machines differ in checkpoint or version ({differing})")
        _embedders[key] = embedder
    loop = Loop(_embedders[key], Path(path).parent)
    with closing(read_clips(clips, loop.embedder.sample_rate, workers=workers)) as decoded:
        write_shard(Path(path), decoded, loop, schema)
    counted = ("clips", "many_channels", "audio_s", "seconds", "waited_s", "failures")
    return {name: getattr(loop, name) for name in counted}


def _make(
    ray: Any, jobs: Mapping[str, Sequence[Clip]], arguments: tuple[Any, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make shards on the cluster, and yield each one's path and counts."""
    spec = arguments[0]
    gpus = int(ray.cluster_resources().get("GPU", 0)) if not spec.device.startswith("cpu") else 0
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(_CPUS, int(min((count for count in nodes if count), default=1))))
    task = ray.remote(
        num_gpus=1 if gpus else 0,
        num_cpus=1 if gpus else cpus,
        max_retries=_RETRIES,
        max_calls=0,  # keep the process and its model, also with a GPU
    )(_make_shard)
    shared = [ray.put(argument) for argument in arguments]
    running = {task.remote(path, clips, *shared): path for path, clips in jobs.items()}
    try:
        while running:
            for done in ray.wait(list(running))[0]:
                yield running.pop(done), ray.get(done)
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise WorkFailedError(sentence_of(error)) from error
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)


def sentence_of(error: BaseException) -> str:
    """Return the cause of an error on the cluster: the last line of its innermost traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the work on the cluster failed: {lines[-1] if lines else type(error).__name__}"


@contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    """Connect to Ray without log output; disconnect at the end if this call connected."""
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # a cluster that this call starts sends no usage reports
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs to its own files
    import ray

    started = not ray.is_initialized()
    if started:
        try:
            if match := re.fullmatch(r"([^/:]+):(\d+)", address):  # Ray would retry for minutes
                socket.create_connection((match[1], int(match[2])), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"no Ray cluster answers at {address!r}: {reason}") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
