"""Embed decoded clips, write them to an output, and count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from hear_m2d.audio import Sound
from hear_m2d.embed.decode import Decoded
from hear_m2d.embed.embedder import Embedder, Embedding
from hear_m2d.embed.inputs import Failure
from hear_m2d.utils.files import report_write_errors
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)


class Loop:
    """Embeds and writes clips; may be run several times.

    Args:
        embedder: The model.
        out: Where the embeddings go, for messages.
        bar: The progress bar.
    """

    def __init__(self, embedder: Embedder, out: Path, bar: ProgressBar | None = None) -> None:
        self.embedder = embedder
        self.out = out
        self.bar = bar
        self.clips = self.many_channels = 0
        self.audio_s = self.seconds = self.waited_s = 0.0
        self.failures: list[Failure] = []

    def run(self, clips: Iterable[Decoded], add: Callable[[Sequence[Embedding]], list[Failure]]) -> None:
        """Embed and write every clip.

        Args:
            clips: The decoded clips.
            add: Writes a batch, and returns the clips that cannot be written.
        """
        before, latest = self.seconds, time.perf_counter()
        for batch in self.embedder.batches(self._timed(clips)):
            self._count_channels(batch)
            results = self.embedder.embed(batch)
            embeddings = [result for result in results if isinstance(result, Embedding)]
            self.failures += [result for result in results if isinstance(result, Failure)]
            with report_write_errors(self.out):
                unwritten = add(embeddings)
            self.failures += unwritten
            self.clips += len(embeddings) - len(unwritten)
            self.audio_s += sum(embedding.duration_s for embedding in embeddings)
            self.seconds = before + time.perf_counter() - latest
            if self.bar is not None:
                self.bar.update(len(batch))
                self.bar.note(f"{self.audio_s / 3600:.2f} h, {self.audio_s / self.seconds:.0f}x real time")

    def _timed(self, clips: Iterable[Decoded]) -> Iterator[Decoded]:
        """Yield the clips, and measure the time spent waiting for them."""
        iterator = iter(clips)
        while True:
            before = time.perf_counter()
            decoded = next(iterator, None)
            self.waited_s += time.perf_counter() - before
            if decoded is None:
                return
            yield decoded

    def _count_channels(self, batch: Sequence[Decoded]) -> None:
        for decoded in batch:
            if isinstance(decoded.result, Sound) and decoded.result.channels > 2:
                if not self.many_channels:
                    logger.info(
                        "%s has %d channels: they are averaged, as in every other such file",
                        decoded.clip.path,
                        decoded.result.channels,
                    )
                self.many_channels += 1
