"""Many files → embeddings on disk: `hear-m2d embed` on one machine.

Threads decode; this thread runs the model and writes. The same call continues after an earlier
one was killed. A file that cannot be read is reported at the end.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hear_m2d.embed.decode import default_workers, read_clips
from hear_m2d.embed.embedder import Embedder, ModelSpec
from hear_m2d.embed.inputs import Failure, Inputs
from hear_m2d.embed.loop import Loop
from hear_m2d.embed.npy import FAILED_FILE, NpyFolder, write_failures
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.files import report_write_errors
from hear_m2d.utils.progress import ProgressBar

FORMATS = ("npy", "parquet")


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        clips: Number of clips that this call embedded.
        already: Number of clips that were embedded before.
        audio_s: Seconds of audio in ``clips``.
        seconds: From the first file to the last.
        waited_s: How much of that the model waited for decoded audio.
        failures: Clips that gave no embedding.
        report: The file that lists the failures; None if there are none.
        many_channels: Number of files with more than two channels, which were averaged.
    """

    clips: int
    already: int
    audio_s: float
    seconds: float
    waited_s: float
    failures: tuple[Failure, ...]
    report: Path | None
    many_channels: int

    @property
    def hours_per_minute(self) -> float:
        """Hours of audio embedded in a minute."""
        return self.audio_s / 60 / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """The share of the time that the model waited for decoded audio."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """How many failures of each kind."""
        return dict(sorted(Counter(failure.reason for failure in self.failures).items()))


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
        raise InputError(f"workers={workers}: it must be 0 or more")
    if output_format not in FORMATS:
        raise InputError(f"format {output_format!r}: it must be one of {', '.join(FORMATS)}")
    if output_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingPackageError(
            "Parquet needs pyarrow. Type: pip install 'hear-m2d[parquet]'", name="pyarrow"
        )
    embedder = Embedder(spec)
    embed = _embed_npy if output_format == "npy" else _embed_parquet
    with ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar:
        loop = Loop(embedder, out, bar)
        workers = default_workers(embedder.device.type) if workers is None else workers
        already, failures, report = embed(loop, inputs, workers=workers, force=force)
    return summarize(loop, already, failures, report)


def summarize(loop: Loop, already: int, failures: Sequence[Failure], report: Path | None) -> Summary:
    """Return the summary of a run.

    Raises:
        WorkFailedError: Nothing could be embedded.
    """
    if not loop.clips and not already:
        first = failures[0]
        raise WorkFailedError(
            f"none of the {len(failures)} files could be embedded (the first: {first.name}, {first.reason}: "
            f"{first.detail}); all are listed in {report}"
        )
    return Summary(
        clips=loop.clips,
        already=already,
        audio_s=loop.audio_s,
        seconds=loop.seconds,
        waited_s=loop.waited_s,
        failures=tuple(failures),
        report=report,
        many_channels=loop.many_channels,
    )


def _embed_npy(
    loop: Loop, inputs: Inputs, *, workers: int, force: bool
) -> tuple[int, list[Failure], Path | None]:
    """Return the number of clips done before, the failures, and their list."""
    embedder = loop.embedder
    with NpyFolder.open(loop.out, embedder.spec.what, inputs, embedder.facts(), force=force) as folder:
        todo = [clip for clip in inputs.clips if not folder.is_done(clip.name)]
        already = len(inputs.clips) - len(todo)
        if loop.bar is not None:
            loop.bar.update(already)
        with closing(read_clips(todo, embedder.sample_rate, workers=workers)) as clips:
            loop.run(clips, folder.add)
        failures = [*inputs.failures, *loop.failures]
        with report_write_errors(loop.out):
            return already, failures, write_failures(loop.out / FAILED_FILE, failures)


def _embed_parquet(
    loop: Loop, inputs: Inputs, *, workers: int, force: bool
) -> tuple[int, list[Failure], Path | None]:
    """Do the same with shards."""
    from hear_m2d.embed.parquet import Shards, write_shard

    embedder = loop.embedder
    with Shards.open(loop.out, embedder.spec.what, inputs, embedder.facts(), force=force) as shards:
        todo = shards.todo()
        already, failures = shards.done_before(todo)
        if loop.bar is not None:
            loop.bar.update(already + len(failures))
        rest = [clip for index in todo for clip in shards.clips(index)]
        with closing(read_clips(rest, embedder.sample_rate, workers=workers)) as clips:
            for index in todo:
                shard = islice(clips, len(shards.clips(index)))
                write_shard(shards.path(index), shard, loop, shards.schema)
        failures = [*inputs.failures, *failures, *loop.failures]
        return already, failures, shards.finish(failures)
