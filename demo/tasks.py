"""Three small generated tasks in HEAR's on-disk format: multiclass, multilabel, events.

Fixed by ``SEED``: the same clips on every machine. Pitch, level, timbre, place and background noise
are drawn anew for each clip, so that neither a mean spectrum nor chance solves a task. ``d_prime`` is
left out: with so few clips, it is infinite as soon as one class is ranked perfectly.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import synth
from synth import SAMPLE_RATE, Sound, generator, level, limit, place, samples

SEED = 2021
Labels = list[str] | list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One task as data.

    Attributes:
        name: Task name; the folder is ``<name>-v1-small``.
        about: One sentence for the page.
        embedding_type: ``scene`` or ``event``.
        prediction_type: ``multiclass`` or ``multilabel``.
        evaluation: HEAR's metric names, the primary one first.
        labels: The classes.
        seconds: Length of every clip.
        clips: How many clips each split holds.
        make: Returns sound and labels of one clip.
    """

    name: str
    about: str
    embedding_type: str
    prediction_type: str
    evaluation: tuple[str, ...]
    labels: tuple[str, ...]
    seconds: float
    clips: dict[str, int]
    make: Callable[[np.random.Generator, Task, int], tuple[Sound, Labels]]

    @property
    def folder(self) -> str:
        """The name of the task's folder, as HEAR forms it."""
        return f"{self.name}-v1-small"


def background(rng: np.random.Generator, seconds: float, rms_db: float) -> Sound:
    """Return colored noise at a level."""
    low, high = rng.uniform(30, 300), rng.uniform(2500, 7500)
    return level(synth.shaped_noise(rng, samples(seconds), rng.uniform(0, 1), low, high), rms_db)


def instrument_clip(rng: np.random.Generator, task: Task, index: int) -> tuple[Sound, Labels]:
    """Return a few notes of one instrument in noise: the same pitches and levels for all instruments."""
    label = task.labels[index % len(task.labels)]
    canvas, loud = np.zeros(samples(task.seconds)), rng.uniform(-26, -16)
    at, root = rng.uniform(0, 0.3), 160 * 2 ** rng.uniform(0, 0.5)
    while at < task.seconds - 0.3:
        length = min(rng.uniform(0.25, 0.7), task.seconds - at)
        place(canvas, synth.note(rng, root * 2 ** rng.uniform(0, 1), length, label), samples(at))
        at += length + rng.uniform(0, 0.15)
    return level(canvas, loud) + background(rng, task.seconds, loud - rng.uniform(10, 20)), [label]


def source(rng: np.random.Generator, label: str, seconds: float) -> Sound:
    """Return some seconds of one sound source."""
    canvas = np.zeros(samples(seconds))
    if label == "rain":
        return synth.texture(rng, seconds, "rain")
    at, voice_hz = rng.uniform(0, seconds / 3), rng.uniform(100, 250)
    kind, low = str(rng.choice(synth.HITS[:4])), rng.uniform(600, 2500)
    while at < seconds - 0.15:
        length = min(rng.uniform(0.2, 0.6), seconds - at)
        if label == "speech":
            sound = synth.word(rng, length, voice_hz)
        elif label == "birds":
            length *= 0.5
            sound = synth.chirp(rng, length, low, low * rng.uniform(1.2, 2.5), rising=rng.random() < 0.5)
        elif label == "drums":
            length, sound = rng.uniform(0.1, 0.3), synth.hit(rng, kind)
        else:
            timbre = str(rng.choice(["bell", "pluck"]))
            sound = synth.note(rng, 130 * 2 ** rng.uniform(0, 3), length, timbre)
        place(canvas, sound, samples(at))
        at += length + rng.uniform(0, 0.2)
    return canvas


def mixture_clip(rng: np.random.Generator, task: Task, index: int) -> tuple[Sound, Labels]:
    """Return a clip of one to three sources: the first in turns (no class is rare), the others at random."""
    first = index % len(task.labels)
    others = rng.choice([k for k in range(len(task.labels)) if k != first], rng.integers(0, 3), replace=False)
    loud, chosen = rng.uniform(-32, -20), sorted(task.labels[k] for k in (first, *others))
    canvas = background(rng, task.seconds, loud - rng.uniform(3, 12))
    for label in chosen:
        place(canvas, level(source(rng, label, task.seconds), loud - rng.uniform(0, 9)), 0)
    return canvas, chosen


def happening(rng: np.random.Generator, label: str, seconds: float) -> Sound:
    """Return one event of the given length."""
    if label == "word":
        return synth.word(rng, seconds, rng.uniform(100, 250))
    if label == "bell":
        return synth.note(rng, rng.uniform(250, 1200), seconds, "bell")
    if label == "whistle":
        low, rising = rng.uniform(700, 2000), rng.random() < 0.5
        return synth.chirp(rng, seconds, low, low * rng.uniform(1.1, 2), rising=rising)
    canvas, every = np.zeros(samples(seconds)), rng.uniform(0.05, 0.09)  # "rattle"
    one = synth.hit(rng, str(rng.choice(["snare", "block", "hat"])))
    for at in np.arange(0, seconds, every):
        place(canvas, one * rng.uniform(0.6, 1), samples(float(at)))
    return canvas


def event_clip(rng: np.random.Generator, task: Task, index: int) -> tuple[Sound, Labels]:
    """Return a file of events: each class twice, in sequence, some overlapping."""
    loud = rng.uniform(-28, -18)
    canvas = background(rng, task.seconds, loud - rng.uniform(6, 15))
    order = rng.permutation([*task.labels, *task.labels])
    slot, events = task.seconds / len(order), []
    for turn, label in enumerate(order):
        length = rng.uniform(0.35, 0.65)
        start = min(slot * turn + rng.uniform(0, slot - 0.3), task.seconds - length - 0.02)
        sound = level(happening(rng, str(label), length), loud - rng.uniform(0, 6))
        place(canvas, sound, samples(start))
        times = {"start": round(1000 * start, 1), "end": round(1000 * (start + length), 1)}
        events.append({"label": str(label), **times})
    return canvas, events


TASKS: tuple[Task, ...] = (
    Task(
        name="demo_instruments",
        about="Which of six instruments plays? A few notes in noise; pitch, rhythm and level vary.",
        embedding_type="scene",
        prediction_type="multiclass",
        evaluation=("mAP", "top1_acc"),
        labels=("bell", "brass", "flute", "organ", "pluck", "reed"),
        seconds=2.0,
        clips={"train": 24, "valid": 12, "test": 24},
        make=instrument_clip,
    ),
    Task(
        name="demo_sources",
        about="Which of five sources of sound are in the mixture? One to three of them, in noise.",
        embedding_type="scene",
        prediction_type="multilabel",
        evaluation=("mAP", "aucroc"),
        labels=("bells", "birds", "drums", "rain", "speech"),
        seconds=2.0,
        clips={"train": 25, "valid": 10, "test": 25},
        make=mixture_clip,
    ),
    Task(
        name="demo_events",
        about="When does what begin? Eight events of four classes in each file of five seconds.",
        embedding_type="event",
        prediction_type="multilabel",
        evaluation=("event_onset_200ms_fms", "segment_1s_er"),
        labels=("bell", "rattle", "whistle", "word"),
        seconds=5.0,
        clips={"train": 6, "valid": 3, "test": 3},
        make=event_clip,
    ),
)


def metadata(task: Task) -> dict[str, Any]:
    """Return the content of ``task_metadata.json``."""
    return {
        "task_name": task.name,
        "version": "v1",
        "mode": "small",
        "embedding_type": task.embedding_type,
        "prediction_type": task.prediction_type,
        "split_mode": "trainvaltest",
        "splits": list(task.clips),
        "sample_duration": task.seconds,
        "evaluation": list(task.evaluation),
    }


def write_task(task: Task, tasks_dir: Path) -> Path:
    """Write one task below ``tasks_dir``; a complete task is not changed.

    The folder appears under its name only when complete.

    Returns:
        The task's folder.
    """
    folder, partial = tasks_dir / task.folder, tasks_dir.parent / f"{task.folder}.partial"
    if folder.exists():
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    for number, (split, count) in enumerate(task.clips.items()):
        audio = partial / str(SAMPLE_RATE) / split
        audio.mkdir(parents=True)
        listing: dict[str, Labels] = {}
        for index in range(count):
            rng = generator(SEED, TASKS.index(task), number, index)
            sound, listing[f"{split}_{index:02d}.wav"] = task.make(rng, task, index)
            sf.write(audio / f"{split}_{index:02d}.wav", limit(sound), SAMPLE_RATE, subtype="PCM_16")
        (partial / f"{split}.json").write_text(json.dumps(listing, indent=1))
    with (partial / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("idx", "label"), *enumerate(sorted(task.labels))])
    (partial / "task_metadata.json").write_text(json.dumps(metadata(task), indent=1))
    tasks_dir.mkdir(parents=True, exist_ok=True)
    return partial.rename(folder)


def write_tasks(tasks_dir: Path) -> list[Path]:
    """Write the three tasks and return their folders."""
    return [write_task(task, tasks_dir) for task in TASKS]
