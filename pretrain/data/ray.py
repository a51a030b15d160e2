"""`hear-m2d prepare --ray`: the same shards, byte for byte, made on many machines by Ray Data.

Each task makes one shard and writes it under its own name, so that one made twice, because a machine died,
is the same shard. Source and output must lie where every machine sees them under the same path.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hear_m2d.pretrain.data.shards import ShardJob, make_shard
from hear_m2d.utils.errors import MissingPackageError, WorkFailedError

if TYPE_CHECKING:
    from hear_m2d.pretrain.data.prepare import Task

INSTALL = "pip install 'hear-m2d[pretrain,ray]'"
_TRIES = 10  # of one shard: Ray itself starts what dies again, without end


def make_on_ray(task: Task, todo: Sequence[int], *, address: str) -> Iterator[int]:
    """Make shards on a cluster, and yield each one's number when it is done.

    Args:
        task: What is to be made.
        todo: The numbers of the shards that are not there yet.
        address: ``auto`` (the cluster this machine belongs to), ``local`` (one made for this call), or
            ``HOST:PORT``.

    Raises:
        ImportError: ray is not installed.
        ValueError: No cluster answers.
        WorkFailedError: A shard could not be made.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError(f"--ray needs Ray. Type: {INSTALL}", name="ray")
    from hear_m2d.embed.ray import cluster_at, sentence_of

    if not todo:
        return
    out = Path(os.path.abspath(task.out))  # noqa: PTH100  # the others may stand somewhere else
    for tries in out.glob(".shard-*.tries"):  # counted for this call alone
        tries.unlink()
    with cluster_at(address) as ray:
        # Ray pickles what it hands over anyway; as bytes, Arrow need not understand it.
        jobs = [{"job": pickle.dumps(task.job(index, out))} for index in todo]
        made = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map_batches(
            make_batch, batch_size=1, num_cpus=1
        )
        try:
            for row in made.iter_rows():
                if row["error"]:
                    raise WorkFailedError(f"a shard could not be made on the cluster: {row['error']}")
                yield int(row["index"])
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise WorkFailedError(sentence_of(error)) from error
    for tries in out.glob(".shard-*.tries"):
        tries.unlink()


def make_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Make the shards of a batch: what runs on the cluster. Errors are data: Ray would bury the sentence."""
    found, errors = [], []
    for content in batch["job"]:
        job: ShardJob = pickle.loads(content)
        told = ""
        try:
            if not job.facts.is_file():  # else made before, by a task that died before it could say so
                _count_try(job)
                make_shard(job)
        except (OSError, ValueError, WorkFailedError) as error:
            told = " ".join(str(error).split())
        found.append(job.index)
        errors.append(told)
    return {"index": found, "error": errors}


def _count_try(job: ShardJob) -> None:
    tries = job.out / f".{job.facts.stem}.tries"
    with tries.open("ab") as file:
        file.write(b".")
    if tries.stat().st_size > _TRIES:
        raise WorkFailedError(
            f"{_TRIES} processes that made shard {job.index} died, perhaps for lack of memory, or by one of "
            f"its files"
        )
