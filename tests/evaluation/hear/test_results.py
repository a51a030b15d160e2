import json
import math
from pathlib import Path
from typing import Any

import pytest

from hear_m2d.evaluation.hear.results import failed, is_finished, read_finished, table

MEASURED = {
    "seconds": {"total": 9.0},
    "peak_memory_bytes": 7,
    "stage_peak_memory_bytes": {"embedding": 7, "prediction": 6},
}


def write_raw(out: Path, raw: dict[str, Any], *, task: str = "t-v1-full") -> Path:
    folder = out / "embeddings" / "m" / task
    folder.mkdir(parents=True)
    (folder / "test.predicted-scores.json").write_text(json.dumps(raw))
    (folder / "prediction-done.json").write_text(json.dumps({"time": 2.5}))
    (folder / "profile.embeddings.json").write_text(json.dumps({"time_elapsed": 1.5}))
    return folder


def fold(score: float, **more: float) -> dict[str, float]:
    return {
        "test_loss": 0.1,
        "test_score": score,
        "test_top1_acc": score,
        "validation_score": -math.inf,
        **more,
    }


def read(folder: Path, out: Path) -> dict[str, Any]:
    return read_finished(folder, out=out, metric="top1_acc", measured=MEASURED)


def test_a_task_without_folds_is_copied_as_printed(tmp_path: Path) -> None:
    folder = write_raw(
        tmp_path, {"test": fold(0.5, test_mAP=0.25), "hparams": {"lr": 1}, "score_mode": "max"}
    )
    assert read(folder, tmp_path) == {
        "task": "t-v1-full",
        "status": "ok",
        "error": None,
        "metric": "top1_acc",
        "score": 0.5,
        "scores": {"top1_acc": 0.5, "mAP": 0.25},
        "folds": [{"fold": "test", "score": 0.5, "scores": {"top1_acc": 0.5, "mAP": 0.25}}],
        "seconds": {"embedding": 1.5, "prediction": 2.5, "total": 9.0},
        "peak_memory_bytes": 7,
        "stage_peak_memory_bytes": {"embedding": 7, "prediction": 6},
        "raw": "embeddings/m/t-v1-full/test.predicted-scores.json",
    }


def test_over_folds_the_harness_own_mean_and_deviation_are_taken(tmp_path: Path) -> None:
    printed = {
        "test_score_mean": 0.123,
        "test_score_std": 0.01,
        "test_top1_acc_mean": 0.123,
        "test_top1_acc_std": 0.01,
    }
    raw = {"fold00": fold(0.5), "fold01": fold(0.7), "aggregated_scores": printed}
    entry = read(write_raw(tmp_path, raw), tmp_path)
    assert entry["score"] == 0.123, "the printed number, though it is not the folds' mean"
    assert entry["scores"] == {"top1_acc": 0.123, "top1_acc_std": 0.01}
    assert [item["fold"] for item in entry["folds"]] == ["fold00", "fold01"]


def test_over_folds_mean_and_deviation_are_computed_where_none_is_printed(tmp_path: Path) -> None:
    entry = read(write_raw(tmp_path, {"fold00": fold(0.5), "fold01": fold(0.7)}), tmp_path)
    assert entry["score"] == pytest.approx(0.6)
    assert entry["scores"]["top1_acc_std"] == pytest.approx(math.sqrt(0.02))


def test_a_fold_that_is_not_a_number_is_listed_and_fails_the_task(tmp_path: Path) -> None:
    printed = {"test_score_mean": 0.9, "test_top1_acc_mean": 0.9}
    raw = {"fold00": fold(0.9), "fold01": fold(math.nan), "fold02": fold(0.9), "aggregated_scores": printed}
    entry = read(write_raw(tmp_path, raw), tmp_path)
    assert entry["status"] == "failed"
    assert entry["folds"][1] == {"fold": "fold01", "score": None, "scores": {"top1_acc": None}}
    assert "top1_acc is not a number on fold01" in entry["error"]


def test_an_infinite_further_metric_is_null_and_named_but_the_task_is_ok(tmp_path: Path) -> None:
    entry = read(write_raw(tmp_path, {"test": fold(1.0, test_d_prime=math.inf)}), tmp_path)
    assert (entry["status"], entry["score"], entry["scores"]["d_prime"]) == ("ok", 1.0, None)
    assert entry["error"] == "d_prime of test is infinite"


def test_a_file_of_the_kit_without_a_fold_with_a_score_fails_the_task(tmp_path: Path) -> None:
    entry = read(write_raw(tmp_path, {"hparams": {"lr": 1}, "test": {"test_loss": 0.1}}), tmp_path)
    assert (entry["status"], entry["score"], entry["folds"]) == ("failed", None, [])
    assert "has no fold with a score" in entry["error"]


def test_a_task_is_finished_only_with_both_done_files(tmp_path: Path) -> None:
    folder = write_raw(tmp_path, {"test": fold(0.5)})
    assert not is_finished(folder)
    (folder / ".done.embeddings").touch()
    assert is_finished(folder)


def test_the_table_has_a_line_for_each_task_and_marks_a_grid_that_is_not_the_published_one(
    tmp_path: Path,
) -> None:
    good = read(write_raw(tmp_path, {"fold00": fold(0.5), "fold01": fold(0.7)}), tmp_path)
    tasks = [good, failed("broken", metric="mAP", error="it broke")]
    lines = table({"tasks": tasks, "harness": {"grid": "default", "grid_points": 8}}).split("\n")
    assert len(lines) == 3
    assert "0.6000 ± 0.1414" in lines[1]
    assert lines[2].startswith("broken")
    assert lines[2].endswith("failed")
    for harness in ({"grid": "fast", "grid_points": 8}, {"grid": "default", "grid_points": 1}):
        assert "NOT THE PUBLISHED GRID" in table({"tasks": tasks, "harness": harness}).split("\n")[-1]


@pytest.mark.parametrize(("clips", "altered"), [(400, None), (30, "90 clips, where HEAR has 2000")])
def test_a_task_of_hear_with_other_clips_is_altered(tmp_path: Path, clips: int, altered: str | None) -> None:
    splits = [f"fold{index:02d}" for index in range(5 if altered is None else 3)]
    raw = {split: fold(0.5) for split in splits}
    folder = write_raw(tmp_path, raw, task="esc50-v2.0.0-full")
    (folder / "task_metadata.json").write_text(json.dumps({"splits": splits}))
    for split in splits:
        files = {f"{split}-{index}.wav": ["dog"] for index in range(clips)}
        (folder / f"{split}.json").write_text(json.dumps(files))
    assert read(folder, tmp_path).get("altered") == altered
