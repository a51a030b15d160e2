import sys
from pathlib import Path

import pytest

from hear_m2d.evaluation.hear.worker import peak_memory, remove_logs, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count can be reset on Linux only")
def test_the_peak_of_one_task_does_not_count_for_the_next() -> None:
    size = 300_000_000
    big = bytearray(size)
    big[::4096] = b"1" * len(big[::4096])
    first = peak_memory()
    del big
    reset_peak_memory()
    second = peak_memory()
    assert first is not None
    assert second is not None
    assert first > size
    assert second < first - size / 2


def test_only_the_training_logs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs/version_0").mkdir(parents=True)
    (tmp_path / "test.predicted-scores.json").touch()
    remove_logs(tmp_path)
    remove_logs(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["test.predicted-scores.json"]
