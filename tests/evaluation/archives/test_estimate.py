import pytest

from hear_m2d.evaluation.archives.catalog import select_tasks
from hear_m2d.evaluation.archives.estimate import (
    TaskSize,
    estimate_embeddings,
    size_of_folder,
    size_of_task,
)
from hear_m2d.evaluation.archives.folder import read_task


def test_maestro_at_40_ms_and_3840_dimensions_takes_8_5_gb_twice() -> None:
    (task,) = select_tasks(["Maestro 5h"])
    need = estimate_embeddings(
        size_of_task(task), scene_size=3840, timestamp_size=3840, timestamps_per_second=25
    )
    assert need.rows == 555_000
    assert need.rows * 3840 * 4 == pytest.approx(8.5e9, rel=0.01)
    assert need.disk_bytes == pytest.approx(2 * 8.5e9, rel=0.02)
    # 8 grid points and 4 further folds, each with 4 of 5 folds in memory.
    assert need.memory_bytes == pytest.approx(12 * 0.8 * 8.5e9, rel=0.25)


def test_maestro_read_from_disk_needs_little_memory() -> None:
    (task,) = select_tasks(["Maestro 5h"])
    sizes = {"scene_size": 3840, "timestamp_size": 3840, "timestamps_per_second": 25}
    in_memory, from_disk = (
        estimate_embeddings(size_of_task(task), **sizes, in_memory=held) for held in (True, False)
    )
    assert from_disk.memory_bytes < in_memory.memory_bytes / 15
    assert from_disk.disk_bytes == in_memory.disk_bytes


def test_fsd50k_at_3840_dimensions_takes_disk_for_51185_clips() -> None:
    (task,) = select_tasks(["FSD50K"])
    need = estimate_embeddings(
        size_of_task(task), scene_size=3840, timestamp_size=1, timestamps_per_second=25
    )
    assert need.rows == pytest.approx(51185, abs=3)
    assert need.memory_bytes > 51185 * 3840 * 4


def test_memory_is_what_was_measured_with_the_official_kit() -> None:
    """2,000 dimensions, 10 classes; beyond the imports."""
    splits = TaskSize(False, 10, {"train": 40_000, "valid": 5_000, "test": 5_000}, {})
    folds = TaskSize(False, 10, {f"fold{number:02d}": 5_000 for number in range(4)}, {})
    for size, grid_points, measured in [(splits, 1, 1.37e9), (splits, 3, 2.02e9), (folds, 2, 0.79e9)]:
        need = estimate_embeddings(
            size, scene_size=2000, timestamp_size=1, timestamps_per_second=1, grid_points=grid_points
        )
        assert need.memory_bytes == pytest.approx(measured, rel=0.2)


def test_a_folder_is_measured_from_its_splits_and_headers(tmp_path, tiny_tasks) -> None:
    import json

    scene = size_of_folder(read_task(tiny_tasks.scene_multilabel(tmp_path)), 16000)
    assert (scene.event, scene.classes, scene.clips) == (False, 4, {"train": 32, "valid": 16, "test": 16})
    task = tiny_tasks.events(tmp_path, seconds=2.0)
    with_duration = size_of_folder(read_task(task), 16000)
    metadata = json.loads((task / "task_metadata.json").read_text())
    (task / "task_metadata.json").write_text(json.dumps(metadata | {"sample_duration": None}))
    assert size_of_folder(read_task(task), 16000) == with_duration
    need = estimate_embeddings(with_duration, scene_size=8, timestamp_size=16, timestamps_per_second=10)
    assert need.rows == 12 * 20
