"""`hear-m2d prepare --ray`: the same shards, byte for byte, made on many machines by Ray.

Each task makes one shard and writes it under its own name, so that a shard made twice, because a machine
died, is the same shard. Every machine must see source and output under the same paths.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from hear_m2d.pretrain.data.shards import ShardJob, make_shard
from hear_m2d.utils.errors import MissingPackageError, WorkFailedError

_RETRIES = 10  # retries of a shard whose process or machine failed


def make_on_ray(jobs: Iterable[ShardJob], *, address: str) -> Iterator[int]:
    """Make shards on a cluster, and yield each one's number when it is done.

    ``address`` is ``auto`` (the cluster this machine belongs to), ``local`` (one made for this call), or
    ``HOST:PORT``.

    Raises:
        MissingPackageError: ray is not installed.
        InputError: No cluster answers.
        WorkFailedError: A shard could not be made.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("--ray needs Ray. Type: pip install 'hear-m2d[pretrain,ray]'", name="ray")
    from hear_m2d.embed.ray import cluster_at, sentence_of

    with cluster_at(address) as ray:
        make = ray.remote(num_cpus=1, max_retries=_RETRIES)(make_shard)
        running = [make.remote(job) for job in jobs]
        try:
            while running:
                done, running = ray.wait(running)
                yield from ray.get(done)
        except ray.exceptions.RayError as error:
            raise WorkFailedError(
                f"a shard could not be made on the cluster: {sentence_of(error)}"
            ) from error
        finally:
            for task in running:
                ray.cancel(task, force=True)
