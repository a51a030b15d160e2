import json

import pytest
import table


@pytest.fixture
def task_dir(tmp_path):
    folder = tmp_path / "birds-v1-small"
    folder.mkdir()
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,crow\n1,owl\n")
    labels = {"a.wav": ["crow"], "b.wav": ["crow"], "c.wav": ["crow"], "d.wav": ["owl"]}
    (folder / "test.json").write_text(json.dumps(labels))
    return folder


def results(**scores):
    task = {"task": "birds-v1-small", "metric": "mAP", "status": "ok", "error": None, "scores": scores}
    return {"tasks": [task]}


@pytest.fixture
def found():
    return {
        "default": results(mAP=0.75, segment_1s_er=0.45),
        "m2d": results(mAP=0.8, mAP_std=0.1, segment_1s_er=0.5, segment_1s_er_error_rate=0.5),
        "msm_mae": results(mAP=0.7, segment_1s_er=0.4, segment_1s_er_error_rate=0.4),
        "untrained": results(mAP=None, segment_1s_er=0.9),
    }


def test_rows_hold_each_metric_once_and_the_primary_first(found, task_dir):
    rows = table.rows(found, task_dir.parent)
    assert [(row.metric, row.primary) for row in rows] == [("mAP", True), ("segment_1s_er", False)]
    assert rows[0].scores == (0.75, None, 0.8, 0.7)


def test_best_is_the_smallest_for_an_error_rate(found, task_dir):
    mean_precision, error_rate = table.rows(found, task_dir.parent)
    assert mean_precision.best == (False, False, True, False)
    assert error_rate.best == (False, False, False, True)


@pytest.mark.parametrize(
    ("metric", "expected"), [("mAP", 0.5), ("top1_acc", 0.75), ("aucroc", 0.5), ("other", None)]
)
def test_chance_comes_from_how_often_a_class_occurs(task_dir, metric, expected):
    assert table.chance(metric, task_dir) == expected


def test_chance_of_folds_counts_all_of_them(task_dir):
    (task_dir / "test.json").rename(task_dir / "fold00.json")
    (task_dir / "fold01.json").write_text(json.dumps({"e.wav": ["owl"], "f.wav": ["owl"]}))
    assert table.class_shares(task_dir) == {"crow": 0.5, "owl": 0.5}


def test_text_names_the_columns_and_stars_the_best(found, task_dir):
    lines = table.text(table.rows(found, task_dir.parent)).splitlines()
    assert lines[0].split("  ")[0] == "task"
    assert [name for name in table.MODELS.values() if name not in lines[0]] == []
    assert lines[1].split() == ["birds-v1-small", "mAP", "0.750", "–", "0.800*", "0.700", "0.500"]


def test_a_task_that_one_model_lacks_or_failed_is_a_problem(found):
    found["m2d"]["tasks"][0] |= {"status": "failed", "error": "mAP is not a number"}
    found["untrained"]["tasks"] = []
    assert table.problems(found) == [
        "M2D, a minute, birds-v1-small: mAP is not a number",
        "untrained, birds-v1-small: it was not run",
    ]
