"""Decode clips in threads while the model runs: in the order of the clips, within a memory budget."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from hear_m2d.audio import AudioError, Sound, read_sound
from hear_m2d.embed.inputs import Clip, Failure
from hear_m2d.utils.device import processors
from hear_m2d.utils.parallel import map_threads

# Decoded audio that waits for the model, at most, besides one clip per thread: two hours at 16 kHz.
BUDGET_BYTES = 512 << 20


@dataclass(frozen=True)
class Decoded:
    """A clip and its sound, or the reason why it has none."""

    clip: Clip
    result: Sound | Failure

    @property
    def nbytes(self) -> int:
        """Bytes of its samples."""
        return self.result.samples.nbytes if isinstance(self.result, Sound) else 0


def default_workers(device: str) -> int:
    """Return the number of decoding threads: one fewer than there are processors, at most 8.

    None on a CPU with one or two cores, where the threads would take processor time from the model.
    """
    spare = min(max(processors() - 1, 1), 8)
    return 0 if device == "cpu" and spare < 2 else spare


def decode(clip: Clip, sample_rate: int) -> Decoded:
    """Decode one clip in this thread."""
    reason: str
    try:
        return Decoded(clip, read_sound(clip.path, sample_rate))
    except AudioError as error:
        reason, detail = error.reason, error.detail
    except OSError as error:
        reason, detail = "unreadable", error.strerror or str(error)
    except MemoryError:
        reason, detail = "too large", "its samples do not fit into memory"
    return Decoded(clip, Failure(clip.name, reason, detail))


def read_clips(clips: Iterable[Clip], sample_rate: int, *, workers: int) -> Generator[Decoded]:
    """Decode clips at a sample rate (hertz), ahead of the caller, and yield them in their order.

    With no ``workers`` they are decoded in this thread, when the caller needs the next one.
    """

    def work(clip: Clip) -> Decoded:
        return decode(clip, sample_rate)

    return map_threads(work, clips, workers=workers, size=lambda decoded: decoded.nbytes, budget=BUDGET_BYTES)
