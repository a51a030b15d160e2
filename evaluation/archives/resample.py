"""Audio of task folders at another sample rate: soxr at its high quality, 16 bit in and out.

HEAR itself used ffmpeg's soxr resampler at this quality on 16-bit audio. This gives the same up to the dither
of one step, which soxr adds to 16-bit output (its seed is fixed here: the same file gives the same bytes).
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from hear_m2d.evaluation.archives.catalog import RATES
from hear_m2d.evaluation.archives.folder import (
    RateFiles,
    TaskFolder,
    compare_files,
    rate_folders,
    read_task,
    task_folders,
)
from hear_m2d.utils.device import processors
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import atomic_write, lock_folder, remove_leftovers, sync_files
from hear_m2d.utils.parallel import map_threads
from hear_m2d.utils.progress import ProgressBar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resampled:
    """Result for one task."""

    task: str
    source_rate: int
    files: int
    """Written by this call; an earlier call may have written others."""
    audio_s: float
    """Seconds of audio in these files."""
    wall_s: float
    result: RateFiles


def resample_tasks(
    folder: Path, rate: int, *, names: Sequence[str] = (), jobs: int | None = None
) -> list[Resampled]:
    """Write the audio of tasks at another rate, from the highest rate that is complete.

    The files are written to ``<task>/.<rate>.partial``, each atomically, and the folder is renamed to
    ``<task>/<rate>`` when all are there. A later call continues. A task that is complete at the rate is left
    as it is.

    Args:
        folder: A folder of tasks, or one task folder.
        rate: In Hz.
        names: Names of task folders; none means all.
        jobs: How many threads; by default, one per core.

    Returns:
        One entry per task.

    Raises:
        InputError: HEAR does not have this rate, or a task has no rate that is complete.
        WorkFailedError: A file cannot be read.
    """
    if rate not in RATES:
        raise InputError(f"the rate must be one of {', '.join(map(str, RATES))}, not {rate}")
    jobs = jobs or processors()
    tasks = [read_task(path) for path in task_folders(folder, names)]
    sources = [_source(task, rate) for task in tasks]  # all are checked before the first is written
    return [_resample(task, source, rate, jobs) for task, source in zip(tasks, sources, strict=True)]


def _source(task: TaskFolder, rate: int) -> int:
    """Return the highest complete rate of a task; the rate itself if it is complete."""
    found = {there: task.compare(there) for there in rate_folders(task.path)}
    if rate in found and found[rate].complete:
        return rate
    complete = [there for there in found if found[there].complete and there != rate]
    if not complete:
        raise InputError(f"{task.path} is not complete at any rate. {_lacking(found.values())}")
    if max(complete) < rate:
        logger.warning(
            "%s: made from %d Hz, nothing is above %d Hz", task.path, max(complete), max(complete) // 2
        )
    return max(complete)


def _lacking(found: Iterable[RateFiles]) -> str:
    lines = [
        f"{files.rate} Hz lacks {len(files.missing)} of {files.listed} files, such as {files.missing[0]}"
        for files in found
        if files.missing
    ]
    return "; ".join(lines) or "It has no audio"


def _resample(task: TaskFolder, source: int, rate: int, jobs: int) -> Resampled:
    begun = time.perf_counter()
    target, partial = task.path / str(rate), task.path / f".{rate}.partial"
    if source == rate:
        return Resampled(task.name, rate, 0, 0.0, 0.0, task.compare(rate))

    def resample(name: str) -> float:
        return _resample_file(task.path / str(source) / name, partial / name, rate)

    with lock_folder(task.path):
        if target.exists() and not partial.exists():  # incomplete: existing files are kept
            target.rename(partial)
        waiting = compare_files(partial, task.splits, rate).missing
        audio_s = 0.0
        with (
            closing(map_threads(resample, waiting, workers=jobs)) as results,
            ProgressBar(total=len(waiting), unit="file", desc=f"{task.name} {rate} Hz") as bar,
        ):
            for seconds in results:
                audio_s += seconds
                bar.update()
        result = compare_files(partial, task.splits, rate)
        if not result.complete:
            raise WorkFailedError(f"{partial} lacks {', '.join(result.missing[:5])}")
        for split in task.splits:
            remove_leftovers(partial / split)
        sync_files(partial / split / name for split, names in task.splits.items() for name in names)
        partial.rename(target)
    return Resampled(task.name, source, len(waiting), audio_s, time.perf_counter() - begun, result)


def _resample_file(source: Path, target: Path, rate: int) -> float:
    """Resample one file; return its length in seconds."""
    try:
        with soundfile.SoundFile(source) as sound:
            own_rate, integer = sound.samplerate, sound.subtype.startswith("PCM")
            audio = sound.read(dtype="int16" if integer else "float32")  # (frames,) or (frames, channels)
    except (soundfile.SoundFileError, OSError) as error:
        raise WorkFailedError(f"{source} cannot be read: {error}") from error
    if not integer:
        audio = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
    content = io.BytesIO()  # soundfile hides the error of a disk that is full
    soundfile.write(content, soxr.resample(audio, own_rate, rate, quality="HQ"), rate, "PCM_16", format="WAV")
    with atomic_write(target, sync=False) as file:
        file.write(content.getbuffer())
    return float(len(audio) / own_rate)
