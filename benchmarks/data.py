"""Speed of the data: hours of audio prepared per core-minute, and crops per second that the loader gives.

    python benchmarks/data.py
    python benchmarks/data.py --audio /path/to/folder

"Per core" means per second of processor time of all working processes. The figures are therefore also valid
on a machine with other work. Files and shards were just written, so they are read from memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import describe_machine
from torch.utils.data import DataLoader

from hear_m2d.pretrain.data.crops import Crops
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sampling import StepBatches

KINDS = [("wav", 16000, 1), ("wav", 44100, 2), ("flac", 44100, 2), ("ogg", 44100, 2), ("mp3", 44100, 2)]
NEEDED = 4000  # clips a second that a training step of the base size takes on a current data-center GPU


def write_audio(folder: Path, *, suffix: str, rate: int, channels: int, files: int) -> None:
    """Write files of ten seconds of noise, which costs a codec more time than most sounds."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(files):
        wave = 0.1 * random.standard_normal((10 * rate, channels))
        soundfile.write(folder / f"{index:04d}.{suffix}", wave, rate)


def prepared_hours(audio: Path, out: Path) -> tuple[float, float]:
    """Prepare with one process; return the hours of audio in a minute of processor time, and of the clock."""
    clock, busy = time.perf_counter(), time.process_time()
    hours = prepare(audio, out, workers=1).hours
    return 60 * hours / (time.process_time() - busy), 60 * hours / (time.perf_counter() - clock)


def loaded_crops(
    data: LogMelData, *, frames: int, batch: int, workers: int, seconds: float
) -> tuple[float, float]:
    """Return the crops in a second of the loading processes' time, and of the clock."""
    steps = StepBatches(0, 1_000_000, batch_size=batch, n_clips=len(data), seed=0)
    made = DataLoader(
        Crops(data, frames=frames),
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=dict,
    )
    before = busy_seconds(workers)
    batches = iter(made)
    ahead = 2 * workers
    for _ in range(1 + ahead):
        next(batches)
    clock, clips = time.perf_counter(), 0
    while time.perf_counter() - clock < seconds:
        clips += len(next(batches)["x"])
    rate = clips / (time.perf_counter() - clock)
    batches = None  # the processes end, and their time is known
    everything = clips + batch * (1 + 2 * ahead)  # left over from earlier loading
    return everything / (busy_seconds(workers) - before), rate


def busy_seconds(workers: int) -> float:
    """Return the processor time so far of this process, or of the loader processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if workers else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hear-m2d-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--audio", type=Path, help="a folder of your own, beside the made one")
    parser.add_argument("--files", type=int, default=64, help="files of ten seconds in the made one")
    parser.add_argument("--frames", type=int, default=608, help="of a crop")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="to load for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(torch.device("cpu")))
    with scratch() as folder:
        write_audio(folder / "warm", suffix="wav", rate=16000, channels=1, files=2)
        prepare(folder / "warm", folder / "warm-out", workers=1)
        print("\n| one process | hours of audio per core-minute | by the clock |\n|---|---|---|")
        sets = []
        for suffix, rate, channels in KINDS:
            place = folder / f"{suffix}-{rate}"
            write_audio(place, suffix=suffix, rate=rate, channels=channels, files=options.files)
            sets.append((f"{suffix}, {rate} Hz, {channels} ch", place))
        if options.audio:
            sets.append((options.audio.name, options.audio))
        for name, place in sets:
            core, clock = prepared_hours(place, folder / f"{place.name}-out")
            print(f"| {name} | {core:.1f} | {clock:.1f} |")
        data = LogMelData(folder / "wav-16000-out")
        print(f"\n{options.frames}-frame crops in batches of {options.batch}; a step takes {NEEDED} clips/s")
        print("| loader processes | clips/s per core | clips/s by the clock | cores for the step |")
        print("|---|---|---|---|")
        for workers in (0, 1, 2):
            core, clock = loaded_crops(
                data,
                frames=options.frames,
                batch=options.batch,
                workers=workers,
                seconds=options.seconds,
            )
            print(f"| {workers} | {core:.0f} | {clock:.0f} | {NEEDED / core:.2f} |")


if __name__ == "__main__":
    main()
