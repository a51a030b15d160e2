"""How much disk and memory the official kit needs for a task, before hours of embedding.

From reading heareval 2021.1.3 and from measurements: every embedding is written twice, per clip and packed.
Each training (one per grid point, then one per further fold) loads its splits anew, and keeps them until the
task is done, because the kit keeps every trainer. Loading a split takes three more copies of it for a moment:
a list of rows, the stacked tensor, and its absolute values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hear_m2d.evaluation.archives.catalog import Task
from hear_m2d.evaluation.archives.check_audio import read_headers
from hear_m2d.evaluation.archives.folder import VOCABULARY, TaskFolder

FLOAT_BYTES = 4
CLIP_BYTES = 3 * 4096
"""Per clip: disk space of the small files of embeddings, labels and timestamps beyond their content."""
EVENT_ROW_BYTES = 200
"""Per timestamp: its names and labels as JSON and pickle."""
ROW_MEMORY_BYTES = 400
"""Per row: Python objects of the kit (label lists, file names, timestamps)."""


@dataclass(frozen=True)
class TaskSize:
    """How much a task holds."""

    event: bool
    """Whether it takes timestamp embeddings."""
    classes: int
    clips: Mapping[str, int]
    """Per split."""
    seconds: Mapping[str, float]
    """Per split; needed only for timestamp embeddings."""


@dataclass(frozen=True)
class Estimate:
    """What one task needs, in rows and bytes."""

    rows: int
    """Embeddings: clips, or timestamps."""
    disk_bytes: int
    memory_bytes: int
    """Memory of the prediction stage's data; the programs need 0.6 GB more."""


def size_of_task(task: Task) -> TaskSize:
    """Return the size of one of HEAR's tasks from the table, with splits of equal size."""
    splits = [f"fold{number:02d}" for number in range(task.folds)] or ["train", "valid", "test"]
    clips = {split: -(-task.clips // len(splits)) for split in splits}
    length = task.sample_duration or 0.0
    return TaskSize(
        event=task.embedding_type == "event",
        classes=task.classes,
        clips=clips,
        seconds={split: task.clips * length / len(splits) for split in splits},
    )


def size_of_folder(task: TaskFolder, rate: int) -> TaskSize:
    """Return the size of a task folder; the headers of its audio are read only if their length matters.

    Args:
        task: The folder.
        rate: The sample rate of the audio, in Hz.
    """
    event = task.metadata.get("embedding_type") == "event"
    duration = task.metadata.get("sample_duration")
    seconds = {split: len(names) * float(duration or 0) for split, names in task.splits.items()}
    if event and duration is None:
        for split, names in task.splits.items():
            headers = read_headers([task.path / str(rate) / split / name for name in names])
            seconds[split] = sum(header[2] / rate for header in headers if not isinstance(header, str))
    classes = max(len((task.path / VOCABULARY).read_text(encoding="utf-8").split()) - 1, 0)
    return TaskSize(event, classes, {split: len(names) for split, names in task.splits.items()}, seconds)


def estimate_embeddings(
    size: TaskSize,
    *,
    scene_size: int,
    timestamp_size: int,
    timestamps_per_second: float,
    grid_points: int = 8,
    in_memory: bool = True,
) -> Estimate:
    """Estimate what the kit needs for a task.

    Args:
        size: From :func:`size_of_folder`.
        scene_size: Dimensions of a scene embedding.
        timestamp_size: Dimensions of a timestamp embedding.
        timestamps_per_second: 25 for a hop of 40 ms.
        grid_points: How many trainings the grid search makes.
        in_memory: Whether the kit holds the embeddings in memory (its default) or reads them from disk.

    Returns:
        The estimate. The kit's training logs, up to 60 MB per training until the task is done, are not in it.
    """
    if size.event:
        rows = {split: round(seconds * timestamps_per_second) for split, seconds in size.seconds.items()}
    else:
        rows = dict(size.clips)
    row_bytes = (timestamp_size if size.event else scene_size) * FLOAT_BYTES
    total, largest = sum(rows.values()), max(rows.values(), default=0)
    disk = 2 * total * row_bytes + sum(size.clips.values()) * CLIP_BYTES
    if size.event:
        disk += total * EVENT_ROW_BYTES
    if "train" in rows:
        trainings, tested = grid_points, rows.get("test", 0)
        trained = total - tested
    else:
        trainings, tested = grid_points + len(rows) - 1, total
        trained = total - min(rows.values(), default=0)
    held_bytes = row_bytes if in_memory else 0
    kept = (trainings * trained + tested) * (held_bytes + size.classes * FLOAT_BYTES + ROW_MEMORY_BYTES)
    return Estimate(total, disk, kept + 3 * largest * held_bytes)
