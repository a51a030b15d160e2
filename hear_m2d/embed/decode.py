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


def default_workers(device: str) -> int:
    """Return the number of decoding threads: one fewer than there are processors, at most 8.

    None on a CPU with one or two cores, where the threads would take processor time from the model.
    """
    spare = min(max(processors() - 1, 1), 8)
    return 0 if device == "cpu" and spare < 2 else spare


def decode(clip: Clip, sample_rate: int) -> Decoded:
    """Decode one clip in this thread."""
    result: Sound | Failure
    try:
        result = read_sound(clip.path, sample_rate)
    except AudioError as error:
        result = Failure(clip.name, error.reason, error.detail)
    except OSError as error:
        result = Failure(clip.name, "unreadable", error.strerror or str(error))
    except MemoryError:
        result = Failure(clip.name, "too large", "its samples do not fit into memory")
    return Decoded(clip, result)


def read_clips(
    clips: Iterable[Clip], sample_rate: int, *, workers: int, budget_bytes: int = BUDGET_BYTES
) -> Generator[Decoded]:
    """Decode clips ahead of the caller, and yield them in their order.

    Args:
        clips: What to decode.
        sample_rate: The requested rate, in hertz.
        workers: Number of threads; 0 decodes in this one, when the caller needs the next clip.
        budget_bytes: No clip is started while decoded ones of this total size wait for the caller.

    Yields:
        Each clip once.
    """
    return map_threads(
        lambda clip: decode(clip, sample_rate), clips, workers=workers, size=_bytes, budget=budget_bytes
    )


def _bytes(decoded: Decoded) -> int:
    return decoded.result.samples.nbytes if isinstance(decoded.result, Sound) else 0
