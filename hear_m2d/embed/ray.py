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
from hear_m2d.embed.loop import Loop, Summary
from hear_m2d.embed.run import checked
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.files import differences
from hear_m2d.utils.progress import ProgressBar

_RETRIES = 10  # retries of a shard whose machine or process fails
_CPUS = 4  # processors for one model on a CPU


def embed_on_ray(
    inputs: Inputs,
    spec: ModelSpec,
    out: str | os.PathLike[str],
    *,
    address: str,
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> Summary:
    """Embed clips on a Ray cluster, or continue an earlier run, also one that was started without Ray.

    The arguments are those of :func:`~hear_m2d.embed.run.embed_files`, with paths that hold on every machine,
    and ``address``: ``auto`` (the cluster this machine belongs to), ``local`` (one made for this call), or
    ``HOST:PORT``. ``workers`` threads (by default 1) decode beside each model.

    Returns:
        What was done; its seconds are those of the whole run, its waiting time is the mean over the models.

    Raises:
        MissingPackageError: ray is not installed.
        InputError: The folder belongs to something else, or there is no such model or option, or no cluster
            answers.
        WorkFailedError: Nothing could be embedded, or the work on the cluster failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("--ray needs Ray. Type: pip install 'hear-m2d[ray]'")
    from hear_m2d.embed.parquet import Shards

    out = Path(os.path.abspath(out))  # noqa: PTH100
    metadata = Embedder(dataclasses.replace(spec, device="cpu")).metadata()
    if spec.name and Path(spec.name).exists():  # relative to this process; the others may work elsewhere
        spec = dataclasses.replace(spec, name=os.path.abspath(spec.name))  # noqa: PTH100
    if not spec.device.startswith("cpu"):  # a task sees only its own GPU
        spec = dataclasses.replace(spec, device=spec.device.partition(":")[0])
    start = time.perf_counter()
    summary = Summary(failures=list(inputs.failures))
    with (
        Shards.open(out, spec.what, inputs, metadata, force=force) as shards,
        ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar,
    ):
        todo = shards.todo()
        shards.count_done(todo, summary, bar)
        if todo:
            jobs = {os.fspath(shards.path(index)): shards.clips(index) for index in todo}
            with cluster_at(address) as ray:
                for path, part in _make_shards(ray, jobs, (spec, metadata, shards.schema, workers or 1)):
                    bar.update(len(jobs[path]))
                    for name in ("clips", "many_channels", "audio_s", "seconds", "waited_s", "failures"):
                        setattr(summary, name, getattr(summary, name) + getattr(part, name))
        seconds = time.perf_counter() - start
        summary.waited_s, summary.seconds = summary.waiting_share * seconds, seconds
        summary.report = shards.finish(summary.failures)
        return checked(summary)


_embedders: dict[str, Embedder] = {}  # of a worker process: one shard after another uses the same model


def _make_shard(
    path: str, clips: Sequence[Clip], spec: ModelSpec, metadata: Mapping[str, Any], schema: Any, workers: int
) -> Summary:
    """Make one shard in a worker process."""
    from hear_m2d.embed.parquet import write_shard

    if (key := repr(spec)) not in _embedders:
        embedder = Embedder(spec)
        here = embedder.metadata()
        if differing := differences(metadata, {name: here[name] for name in ("sha256", "version")}):
            raise InputError(f"the machines differ in checkpoint or version ({differing})")
        _embedders[key] = embedder
    loop = Loop(_embedders[key], Path(path).parent, ProgressBar(disable=True))
    with closing(read_clips(clips, loop.embedder.sample_rate, workers=workers)) as decoded:
        write_shard(Path(path), decoded, loop, schema)
    return loop.summary


def _make_shards(
    ray: Any, jobs: Mapping[str, Sequence[Clip]], arguments: tuple[Any, ...]
) -> Iterator[tuple[str, Summary]]:
    """Make shards on the cluster, and yield each one's path and summary."""
    on_cpu = arguments[0].device.startswith("cpu") or not ray.cluster_resources().get("GPU")
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(_CPUS, int(min((count for count in nodes if count), default=1))))
    task = ray.remote(
        num_gpus=0 if on_cpu else 1,
        num_cpus=cpus if on_cpu else 1,
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
        for left in running:
            ray.cancel(left, force=True)


def sentence_of(error: BaseException) -> str:
    """Return the cause of an error on the cluster: the last line of its innermost traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the work on the cluster failed: {lines[-1] if lines else type(error).__name__}"


@contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    """Connect to Ray without log output; disconnect at the end if this call connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that this call starts
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs to its own files
    import ray

    connected = ray.is_initialized()
    if not connected:
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
        if not connected:
            ray.shutdown()
