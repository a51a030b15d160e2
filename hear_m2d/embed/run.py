"""Many files → embeddings on disk: `hear-m2d embed` on one machine.

Worker processes decode, this process runs the model and writes. What is written is done: the same call
again goes on where an earlier one was killed. A file that cannot be read is reported at the end.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

from hear_m2d.audio import Sound
from hear_m2d.embed.decode import Decoded, Failure, default_workers, read_clips
from hear_m2d.embed.embedder import Embedder, Embedding, ModelSpec
from hear_m2d.embed.inputs import Inputs
from hear_m2d.embed.npy import NpyTarget, Target, said_plainly
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)

FORMATS = ("npy", "parquet")


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        clips: Embedded by this call.
        already: Done before.
        audio_s: Seconds of audio in ``clips``.
        seconds: From the first file to the last.
        waited_s: How much of them the model waited for decoded audio.
        failures: Clips that gave no embedding.
        report: The list of those, or None where there are none.
        many_channels: Files with more than two channels, which were averaged.
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
    """Embed clips, or continue.

    Args:
        inputs: From :func:`~hear_m2d.embed.inputs.collect_inputs`.
        spec: The model, and what is asked of it.
        out: A folder for ``npy``, a file for ``parquet``.
        output_format: ``npy`` or ``parquet``.
        workers: Processes that decode; by default one fewer than there are processors, at least one.
            0 decodes in this process.
        force: Begin anew, whatever lies there.
        progress: Show a progress bar.

    Returns:
        What was done.

    Raises:
        ValueError: The target belongs to something else; no such model or option.
        WorkFailedError: Nothing could be embedded, or writing failed.
    """
    out = Path(out)
    if workers is not None and workers < 0:
        raise InputError(f"workers={workers}; it is 0 or more")
    embedder = Embedder(spec)
    with _open(out, output_format, inputs, embedder, force=force) as target:
        todo = [clip for clip in inputs.clips if clip.name not in target.done]
        clips = read_clips(
            todo, embedder.sample_rate, workers=default_workers() if workers is None else workers
        )
        with ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar:
            bar.update(len(inputs.clips) - len(todo))
            run = Run(embedder, out, target.add, bar)
            with closing(clips):  # ends the worker processes
                run.through(clips)
        with said_plainly(out):
            report = target.finish(run.failures)
    already = len(inputs.clips) - len(todo)
    if not run.clips and not already:
        raise nothing_embedded(run.failures, report)
    return Summary(
        clips=run.clips,
        already=already,
        audio_s=run.audio_s,
        seconds=run.seconds,
        waited_s=run.waited_s,
        failures=tuple(run.failures),
        report=report,
        many_channels=run.many_channels,
    )


def _open(
    out: Path, output_format: str, inputs: Inputs, embedder: Embedder, *, force: bool
) -> AbstractContextManager[Target]:
    if output_format not in FORMATS:
        raise InputError(f"format {output_format!r}; it is one of {', '.join(FORMATS)}")
    what, facts = embedder.spec.what, embedder.facts()
    if output_format == "npy":
        return NpyTarget.open(out, what, inputs, facts, force=force)
    need_parquet()
    from hear_m2d.embed.parquet import ParquetTarget

    return ParquetTarget.open(out, what, inputs, facts, force=force)


def nothing_embedded(failures: Sequence[Failure], report: Path | None) -> WorkFailedError:
    """Return the error for a run of which nothing came."""
    first = failures[0]
    return WorkFailedError(
        f"none of the {len(failures)} files could be embedded (the first: {first.name}, {first.reason}: "
        f"{first.detail}); all are listed in {report}"
    )


def need_parquet() -> None:
    """Say what to install where Parquet cannot be written.

    Raises:
        ImportError: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPackageError(
            "Parquet needs pyarrow. Type: pip install 'hear-m2d[parquet]'", name="pyarrow"
        )


class Run:
    """The loop, and what it counts.

    Args:
        embedder: The model.
        out: Where it goes, for messages.
        add: Writes a batch, and returns the clips that cannot be written.
        bar: Of the progress.
    """

    def __init__(
        self,
        embedder: Embedder,
        out: Path,
        add: Callable[[Sequence[Embedding]], list[Failure]],
        bar: ProgressBar | None = None,
    ) -> None:
        self.embedder = embedder
        self.out = out
        self.add = add
        self.bar = bar
        self.clips = self.many_channels = 0
        self.audio_s = self.seconds = self.waited_s = 0.0
        self.failures: list[Failure] = []

    def through(self, clips: Iterable[Decoded]) -> None:
        """Embed and write every clip."""
        start = time.perf_counter()
        for batch in self.embedder.batches(self._timed(clips)):
            self._tell_channels(batch)
            results = self.embedder.embed(batch)
            embeddings = [result for result in results if isinstance(result, Embedding)]
            self.failures += [result for result in results if isinstance(result, Failure)]
            with said_plainly(self.out):
                unwritten = self.add(embeddings)
            self.failures += unwritten
            self.clips += len(embeddings) - len(unwritten)
            self.audio_s += sum(embedding.duration_s for embedding in embeddings)
            self.seconds = time.perf_counter() - start
            if self.bar is None:
                continue
            self.bar.update(len(batch))
            self.bar.note(f"{self.audio_s / 3600:.2f} h, {self.audio_s / self.seconds:.0f}x real time")

    def _timed(self, clips: Iterable[Decoded]) -> Iterator[Decoded]:
        """Pass clips on, and count how long each was waited for."""
        iterator = iter(clips)
        while True:
            before = time.perf_counter()
            decoded = next(iterator, None)
            self.waited_s += time.perf_counter() - before
            if decoded is None:
                return
            yield decoded

    def _tell_channels(self, batch: Sequence[Decoded]) -> None:
        for decoded in batch:
            if isinstance(decoded.result, Sound) and decoded.result.channels > 2:
                if not self.many_channels:
                    logger.info(
                        "%s has %d channels: they are averaged, as in every other such file",
                        decoded.clip.path,
                        decoded.result.channels,
                    )
                self.many_channels += 1
