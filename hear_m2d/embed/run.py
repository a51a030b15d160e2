"""Many files → embeddings on disk: `hear-m2d embed` on one machine.

Threads decode; this thread runs the model and writes. The same call continues after an earlier
one was killed. A file that cannot be read is reported at the end.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import closing
from itertools import islice
from pathlib import Path

from hear_m2d.embed.decode import default_workers, read_clips
from hear_m2d.embed.embedder import Embedder, ModelSpec
from hear_m2d.embed.inputs import Inputs
from hear_m2d.embed.loop import Loop, Summary
from hear_m2d.embed.npy import FAILED_FILE, NpyFolder, write_failures
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.progress import ProgressBar


def embed_files(
    inputs: Inputs,
    spec: ModelSpec,
    out: str | os.PathLike[str],
    *,
    output_format: str = "npy",
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> Summary:
    """Embed clips, or continue an earlier run.

    Args:
        inputs: From :func:`~hear_m2d.embed.inputs.collect_inputs`.
        spec: The model, and what to compute.
        out: A folder.
        output_format: ``npy`` or ``parquet``.
        workers: Number of threads that decode; 0 decodes in this thread. The default is that of
            :func:`~hear_m2d.embed.decode.default_workers`.
        force: Start again: replace what an earlier run wrote there.
        progress: Show a progress bar.

    Returns:
        What was done.

    Raises:
        InputError: The folder belongs to something else, or there is no such model or option.
        WorkFailedError: Nothing could be embedded, or writing failed.
    """
    out = Path(out)
    if workers is not None and workers < 0:
        raise InputError(f"workers must be 0 or more, got {workers}")
    if output_format not in ("npy", "parquet"):
        raise InputError(f"output_format must be npy or parquet, got {output_format!r}")
    if output_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingPackageError("Parquet needs pyarrow. Type: pip install 'hear-m2d[parquet]'")
    embedder = Embedder(spec)
    workers = default_workers(embedder.device.type) if workers is None else workers
    embed = _embed_npy if output_format == "npy" else _embed_parquet
    with ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar:
        loop = Loop(embedder, out, bar)
        loop.summary.failures += inputs.failures
        embed(loop, inputs, workers=workers, force=force)
    return checked(loop.summary)


def checked(summary: Summary) -> Summary:
    """Return the summary of a run; raise a WorkFailedError if nothing could be embedded."""
    if not summary.clips and not summary.already:
        first = summary.failures[0]
        raise WorkFailedError(
            f"none of the {len(summary.failures)} files could be embedded (the first: {first.name}, "
            f"{first.reason}: {first.detail}); all are listed in {summary.report}"
        )
    return summary


def _embed_npy(loop: Loop, inputs: Inputs, *, workers: int, force: bool) -> None:
    embedder, summary = loop.embedder, loop.summary
    with NpyFolder.open(loop.out, embedder.spec.what, inputs, embedder.metadata(), force=force) as folder:
        todo = [clip for clip in inputs.clips if not folder.is_done(clip.name)]
        summary.already = len(inputs.clips) - len(todo)
        loop.bar.update(summary.already)
        with closing(read_clips(todo, embedder.sample_rate, workers=workers)) as clips:
            loop.run(clips, folder.add)
        summary.report = write_failures(loop.out / FAILED_FILE, summary.failures)


def _embed_parquet(loop: Loop, inputs: Inputs, *, workers: int, force: bool) -> None:
    from hear_m2d.embed.parquet import Shards, write_shard

    embedder, summary = loop.embedder, loop.summary
    with Shards.open(loop.out, embedder.spec.what, inputs, embedder.metadata(), force=force) as shards:
        todo = shards.todo()
        shards.count_done(todo, summary, loop.bar)
        rest = [clip for index in todo for clip in shards.clips(index)]
        with closing(read_clips(rest, embedder.sample_rate, workers=workers)) as clips:
            for index in todo:
                shard = islice(clips, len(shards.clips(index)))
                write_shard(shards.path(index), shard, loop, shards.schema)
        summary.report = shards.finish(summary.failures)
