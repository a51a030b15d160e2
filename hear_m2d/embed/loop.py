"""Embed decoded clips, write them to an output, and count."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hear_m2d.audio import Sound
from hear_m2d.embed.decode import Decoded
from hear_m2d.embed.embedder import Embedder, Embedding
from hear_m2d.embed.inputs import Failure
from hear_m2d.utils.files import report_write_errors
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What was done."""

    clips: int = 0  # clips that this call embedded
    already: int = 0  # clips that were embedded before
    audio_s: float = 0.0  # seconds of audio in ``clips``
    seconds: float = 0.0  # from the first file to the last
    waited_s: float = 0.0  # how much of that the model waited for decoded audio
    many_channels: int = 0  # files with more than two channels, which were averaged
    failures: list[Failure] = field(default_factory=list)  # clips that gave no embedding
    report: Path | None = None  # the file that lists the failures, if there are some

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


class Loop:
    """Embeds and writes clips; may be run several times. ``out`` is for messages."""

    def __init__(self, embedder: Embedder, out: Path, bar: ProgressBar) -> None:
        self.embedder = embedder
        self.out = out
        self.bar = bar
        self.summary = Summary()

    def run(self, clips: Iterable[Decoded], add: Callable[[Sequence[Embedding]], list[Failure]]) -> None:
        """Embed and write every clip; ``add`` writes a batch, and returns the clips that it cannot write."""
        summary = self.summary
        before, start = summary.seconds, time.perf_counter()
        for batch in self.embedder.batches(self._timed(clips)):
            results = self.embedder.embed(batch)
            embeddings = [result for result in results if isinstance(result, Embedding)]
            with report_write_errors(self.out):
                unwritten = add(embeddings)
            summary.failures += [result for result in results if isinstance(result, Failure)] + unwritten
            summary.clips += len(embeddings) - len(unwritten)
            summary.audio_s += sum(embedding.duration_s for embedding in embeddings)
            summary.seconds = before + time.perf_counter() - start
            self.bar.update(len(batch))
            speed = summary.audio_s / summary.seconds
            self.bar.note(f"{summary.audio_s / 3600:.2f} h, {speed:.0f}x real time")

    def _timed(self, clips: Iterable[Decoded]) -> Iterator[Decoded]:
        """Yield the clips; measure the time spent waiting for them, and count those with many channels."""
        iterator = iter(clips)
        while True:
            start = time.perf_counter()
            decoded = next(iterator, None)
            self.summary.waited_s += time.perf_counter() - start
            if decoded is None:
                return
            if isinstance(decoded.result, Sound) and decoded.result.channels > 2:
                if not self.summary.many_channels:
                    text = "%s has %d channels: they are averaged, as in every other such file"
                    logger.info(text, decoded.clip.path, decoded.result.channels)
                self.summary.many_channels += 1
            yield decoded
