"""What is read of a `results.json`, and the one line for what is not one."""

import json
import shutil

import pytest

from hear_m2d.evaluation.report.runs import read_runs
from hear_m2d.utils.errors import InputError


def test_a_run_is_read_from_its_folder_and_from_its_file(write_run):
    folder = write_run("mine", ("esc50-v2.0.0-full", 0.8, "top1_acc", (0.7, 0.9)))
    for argument in (str(folder), str(folder / "results.json")):
        (run,) = read_runs([argument])
        assert run.name == "mine"
        assert run.marks == ()
        (task,) = run.tasks
        assert (task.score, task.folds) == (0.8, (0.7, 0.9))
        assert task.spread == pytest.approx(0.1414, abs=1e-4)


def test_the_time_of_a_task_counts_each_stage_once(write_run):
    (run,) = read_runs([str(write_run("mine", ("esc50-v2.0.0-full", 0.8)))])
    assert run.tasks[0].seconds == 12.5  # not with the total of 20 s again


def test_the_spread_that_the_harness_printed_is_kept(write_run):
    entry = write_run.task("esc50-v2.0.0-full", 0.8, folds=(0.7, 0.9))
    entry["scores"]["top1_acc_std"] = 0.123
    (run,) = read_runs([str(write_run("mine", entry))])
    assert run.tasks[0].spread == 0.123


def test_other_settings_of_the_harness_are_marked(write_run):
    (run,) = read_runs([str(write_run("mine", ("esc50-v2.0.0-full", 0.8), grid="faster", points=2))])
    assert run.marks == ("grid 'faster'", "grid points: 2, not 8")


def test_a_null_score_and_a_failed_task_have_no_score_but_a_reason(write_run):
    entry = write_run.task("esc50-v2.0.0-full", 0.5) | {"score": None}
    failed = ("libricount-v1.0.0-hear2021-full", None)
    (run,) = read_runs([str(write_run("mine", entry, failed))])
    assert [task.score for task in run.tasks] == [None, None]
    assert [task.error for task in run.tasks] == ["no score", "RuntimeError: it broke"]


def test_two_runs_of_one_name_are_refused_and_can_be_renamed(write_run):
    first, second = (str(write_run("same", ("esc50-v2.0.0-full", score))) for score in (0.5, 0.6))
    with pytest.raises(InputError, match=r"2 runs are named 'same': .*NAME=") as error:
        read_runs([first, second])
    assert first in str(error.value)
    assert second in str(error.value)
    assert [run.name for run in read_runs([f"small={first}", second])] == ["small", "same"]


def test_a_folder_with_an_equals_sign_is_a_folder(write_run, tmp_path):
    folder = tmp_path / "seed=1"
    shutil.copytree(write_run("mine", ("esc50-v2.0.0-full", 0.5)), folder)
    assert read_runs([str(folder)])[0].name == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a results.json"),
        ("[1, 2]", "holds a list, not a JSON object: give the --out folder of"),
        ('{"format": 1, "harness": []}', "a field has a wrong type"),
        ("{}", "'format' is missing"),
        ('{"format": 2}', "has the format 2; this version reads format 1"),
        ('{"format": 1}', "'harness' is missing"),
        ("\x00\x01", "not a results.json"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, words):
    path = tmp_path / "something.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        read_runs([str(path)])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_binary_file_as_a_run_is_not_quoted(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(
        InputError, match=r"results\.json is not a text file \(UTF-8\): give the --out folder"
    ):
        read_runs([str(path)])


def test_nan_is_refused(write_run):
    folder = write_run("mine", ("esc50-v2.0.0-full", 0.5))
    path = folder / "results.json"
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(InputError, match="it holds NaN, where a score that is not a number must be null"):
        read_runs([str(folder)])


def test_an_entry_without_a_score_is_refused(write_run):
    folder = write_run("mine", ("esc50-v2.0.0-full", 0.5))
    content = json.loads((folder / "results.json").read_text())
    del content["tasks"][0]["score"]
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'score' is missing"):
        read_runs([str(folder)])


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no results\.json: give the --out folder"):
        read_runs([str(tmp_path)])
    with pytest.raises(InputError, match="No such file"):
        read_runs([str(tmp_path / "nothing")])
