import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hear_m2d.evaluation.archives.check import (
    EVENT_METRICS,
    SCENE_METRICS,
    check_tasks,
    has_errors,
    summarize,
)
from hear_m2d.utils.errors import InputError


def lines(folder: Path, rate: int | None = 16000) -> str:
    return "\n".join(map(str, check_tasks(folder, rate=rate)))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rename_label(task: Path, old: str, new: str, *, spelled: Any = None) -> None:
    """Give a class another name in the vocabulary and in the splits."""
    vocabulary = task / "labelvocabulary.csv"
    vocabulary.write_text(vocabulary.read_text().replace(f",{old}\n", f",{new}\n"))
    for split in json.loads((task / "task_metadata.json").read_text())["splits"]:
        rows = json.loads((task / f"{split}.json").read_text())
        renamed = {
            name: [(new if spelled is None else spelled) if str(label) == old else label for label in labels]
            for name, labels in rows.items()
        }
        (task / f"{split}.json").write_text(json.dumps(renamed))


@pytest.fixture
def scene(tmp_path, tiny_tasks) -> Path:
    return tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(8, 4, 4))


@pytest.fixture
def events(tmp_path, tiny_tasks) -> Path:
    return tiny_tasks.events(tmp_path / "tasks", seconds=2.0)


@pytest.fixture
def folds(tmp_path, tiny_tasks) -> Path:
    return tiny_tasks.folds(tmp_path / "tasks")


def test_healthy_tasks_have_no_findings(tmp_path, tiny_tasks) -> None:
    folder = tmp_path / "tasks"
    for make in (
        tiny_tasks.scene_multiclass,
        tiny_tasks.scene_multilabel,
        tiny_tasks.events,
        tiny_tasks.folds,
    ):
        make(folder)
    assert check_tasks(folder, rate=16000) == []
    assert check_tasks(folder) == []


def test_the_metrics_are_those_of_the_official_kit() -> None:
    score = pytest.importorskip("heareval.score")
    assert sorted(SCENE_METRICS + EVENT_METRICS) == sorted(score.available_scores)


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("01", "'1'"),
        ("1e3", "'1000.0'"),
        ("true", "'True'"),
        ("NA", "a missing value"),
        ("null", "a missing value"),
    ],
)
def test_labels_that_pandas_changes_are_found(tmp_path, tiny_tasks, label, read) -> None:
    """pandas decides per column: a number among words stays a word."""
    task = tiny_tasks.folds(tmp_path)
    others = {
        "01": ("02", "3"),
        "1e3": ("2", "3"),
        "true": ("false", "true2"),
        "NA": ("b", "c"),
        "null": ("b", "c"),
    }
    if label == "true":
        (task / "labelvocabulary.csv").write_text("idx,label\n0,false\n1,true\n")
        for split in ("fold00", "fold01", "fold02"):
            edit(task / f"{split}.json", lambda rows: rows.update({name: ["true"] for name in rows}))
    else:
        for old, new in zip(("0", "1", "2"), (label, *others[label]), strict=True):
            rename_label(task, old, new)
    found = lines(task)
    line = 3 if label == "true" else 2
    assert f"labelvocabulary.csv, line {line}: pandas, as the kit uses it, reads '{label}' as {read}" in found
    assert f"the label '{label}' is not in labelvocabulary.csv: pandas reads it as {read}" in found
    assert "error: strokes-v1.0-full: fold00.json, fold00-00.wav" in found


def test_labels_that_only_look_like_numbers_do_no_harm(scene, folds) -> None:
    rename_label(scene, "a", "01")
    assert lines(scene) == ""  # the other labels are words, so that the column is text
    assert lines(folds) == ""  # integers, compared as text


def test_an_empty_label_is_found(scene) -> None:
    (scene / "labelvocabulary.csv").write_text("idx,label\n0,a\n1,\n2,c\n3,d\n")
    assert "labelvocabulary.csv, line 3: the label is empty" in lines(scene)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it cannot be read"),
        ("label\na\n", "its header must be idx,label"),
        ("idx,label\n0,a\n2,b\n3,c\n4,d\n", "its `idx` must be 0 to 3, each once"),
        ("idx,label\n0,a\n1,b\n2,c\n3,d\n4,d\n", "the label 'd' is there 2 times"),
    ],
)
def test_a_broken_vocabulary_is_found(scene, text, message) -> None:
    (scene / "labelvocabulary.csv").write_text(text)
    assert message in lines(scene)


def test_labels_outside_the_vocabulary_are_found(scene) -> None:
    edit(scene / "valid.json", lambda rows: rows.update({"valid00.wav": ["z"], "valid01.wav": [3]}))
    found = lines(scene)
    assert (
        "error: tones-v1.0-full: valid.json, valid00.wav: the label 'z' is not in labelvocabulary.csv"
        in found
    )
    assert "valid01.wav: the label 3 is not in" in found


@pytest.mark.parametrize("labels", [[], ["a", "b"], "a", None, [None]])
def test_a_multiclass_clip_has_one_label(scene, labels) -> None:
    edit(scene / "train.json", lambda rows: rows.update({"train05.wav": labels}))
    assert "error: tones-v1.0-full: train.json, train05.wav: " in lines(scene)


METADATA = [
    ({"evaluation": ["top1_ac"]}, "unknown metric 'top1_ac'. Did you mean top1_acc"),
    ({"evaluation": []}, "`evaluation` must be a list of metrics"),
    (
        {"evaluation": ["event_onset_50ms_fms"]},
        "the metric event_onset_50ms_fms cannot score tasks of type scene",
    ),
    ({"splits": ["train", "test"]}, "`splits` lacks valid"),
    ({"splits": "train"}, "`splits` must be a list of names"),
    ({"splits": ["train", "../valid", "test"]}, "`splits` must hold plain names"),
    ({"split_mode": "new_split_kfold", "splits": ["train", "test"]}, "2 folds: at least 3 are needed"),
    ({"split_mode": "kfold"}, "`split_mode` must be one of"),
    ({"embedding_type": "clip"}, "`embedding_type` must be one of scene, event"),
    ({"embedding_type": "event", "prediction_type": "multiclass"}, "the events of a task must be multilabel"),
    ({"prediction_type": None}, "`prediction_type` must be one of"),
    ({"sample_duration": "1 s"}, "`sample_duration` must be seconds or null"),
]


@pytest.mark.parametrize(("change", "message"), METADATA)
def test_metadata_that_the_kit_cannot_use_are_found(scene, change, message) -> None:
    edit(scene / "task_metadata.json", lambda metadata: metadata.update(change))
    assert f"error: tones-v1.0-full: task_metadata.json: {message}" in lines(scene)


def test_missing_metadata_and_files_are_found(scene) -> None:
    edit(scene / "task_metadata.json", lambda metadata: metadata.pop("sample_duration"))
    (scene / "test.json").unlink()
    found = lines(scene)
    assert "`sample_duration` is missing" in found
    assert "test.json cannot be read: No such file or directory" in found
    (scene / "task_metadata.json").write_text("[]")
    assert "must hold a JSON object" in lines(scene)


def test_an_event_task_without_score_based_stopping_needs_one_grid_point(events) -> None:
    edit(
        events / "task_metadata.json", lambda metadata: metadata.update(use_scoring_for_early_stopping=False)
    )
    assert "must have one point, not 2" in lines(events)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"label": "a", "start": 300, "end": 200}, "event 1 ends at 200 ms, before its start at 300 ms"),
        ({"label": "a", "start": 300}, "event 1 must have label, start and end"),
        ({"label": "a", "start": "0.3", "end": 1}, "event 1: start and end must be milliseconds"),
        ({"label": "z", "start": 0, "end": 1}, "the label 'z' is not in"),
    ],
)
def test_broken_events_are_found(events, event, message) -> None:
    edit(events / "train.json", lambda rows: rows.update({"train00.wav": [event]}))
    assert f"error: bells-v1.0-full: train.json, train00.wav: {message}" in lines(events)


def test_a_split_without_events_or_files_is_found(events) -> None:
    edit(events / "valid.json", lambda rows: rows.update({name: [] for name in rows}))
    (events / "test.json").write_text("{}")
    found = lines(events)
    assert "error: bells-v1.0-full: valid.json: no file of the split has events" in found
    assert "error: bells-v1.0-full: test.json: the split has no files" in found


def test_a_split_called_val_is_found_and_its_name_is_given(scene) -> None:
    (scene / "valid.json").rename(scene / "val.json")
    edit(scene / "task_metadata.json", lambda metadata: metadata.update(splits=["train", "val", "test"]))
    found = lines(scene)
    assert "the split `val` is not used: trainvaltest has train, valid, test. Call it `valid`." in found
    assert "error: tones-v1.0-full: task_metadata.json: `splits` lacks valid" in found


def test_a_fold_with_one_class_is_found(folds) -> None:
    edit(folds / "fold01.json", lambda rows: rows.update({name: [1] for name in rows}))
    assert lines(folds) == "warning: strokes-v1.0-full: fold01.json: all its labels are '1'"


def test_an_absent_class_is_an_error_where_the_primary_metric_is_not_a_number(folds) -> None:
    edit(folds / "fold01.json", lambda rows: rows.update({name: [1 + n % 2] for n, name in enumerate(rows)}))
    assert lines(folds) == ""
    edit(folds / "task_metadata.json", lambda metadata: metadata.update(evaluation=["aucroc"]))
    assert "error: strokes-v1.0-full: fold01.json: 1 of 3 classes are absent, such as '0': aucroc" in lines(
        folds
    )
    edit(folds / "task_metadata.json", lambda metadata: metadata.update(evaluation=["mAP"]))
    assert "warning: strokes-v1.0-full: fold01.json: 1 of 3 classes are absent" in lines(folds)


def test_what_the_kit_survives_is_no_error(scene) -> None:
    (scene / "labelvocabulary.csv").write_text("label,idx,color\nd,3,x\nb,1,x\nc,2,x\na,0,x\nNA,4,x\n")
    assert lines(scene) == (
        "warning: tones-v1.0-full: labelvocabulary.csv, line 6: pandas, as the kit uses it, reads 'NA' as a "
        "missing value"
    )


def test_a_last_batch_of_one_row_is_found(scene, folds) -> None:
    edit(scene / "train.json", lambda rows: rows.update({f"more{n}.wav": ["a"] for n in range(1017)}))
    assert "train.json: training on train has 1025 clips: the last batch of 1024 would have one row" in lines(
        scene
    )
    edit(folds / "fold02.json", lambda rows: rows.update({f"more{n}.wav": [0] for n in range(1013)}))
    found = lines(folds)
    assert "training on all but fold00 and fold01 has 1025 clips" in found
    assert "all but fold01" not in found


def test_audio_that_the_kit_cannot_use_is_found(scene) -> None:
    audio = np.zeros(16000, np.int16)
    soundfile.write(scene / "16000/train/train00.wav", np.zeros(44100, np.int16), 44100)
    soundfile.write(scene / "16000/train/train01.wav", np.stack([audio, audio], 1), 16000)
    soundfile.write(scene / "16000/train/train02.wav", audio[:0], 16000)
    soundfile.write(scene / "16000/train/train03.wav", audio[:9000], 16000)
    (scene / "16000/train/train04.wav").write_bytes(b"")
    (scene / "16000/train/train05.wav").unlink()
    (scene / "16000/train/more.wav").write_bytes(b"")
    (scene / "16000/train/.hidden").write_bytes(b"")
    found = lines(scene)
    place = "error: tones-v1.0-full: 16000/train/train"
    assert f"{place}00.wav: its sample rate is 44100 Hz" in found
    assert f"{place}01.wav: it has 2 channels" in found
    assert f"{place}02.wav: it has no samples" in found
    assert f"{place}03.wav: it has 9000 samples, most files have 16000" in found
    assert f"{place}04.wav: it cannot be read (0 bytes)" in found
    assert f"{place}05.wav: the file is not there" in found
    assert "warning: tones-v1.0-full: 16000/train/more.wav: no split lists it" in found
    assert ".hidden" not in found


def test_a_rate_that_is_not_there_names_the_command(scene) -> None:
    assert (
        "there is no audio at 48000 Hz; rates that are there: 16000. Type: hear-m2d tasks resample"
        in lines(scene, 48000)
    )


def test_a_wrong_clip_length_in_the_metadata_is_a_warning(scene) -> None:
    edit(scene / "task_metadata.json", lambda metadata: metadata.update(sample_duration=2.0))
    assert "warning: tones-v1.0-full: task_metadata.json: `sample_duration` is 2.0 s, but most" in lines(
        scene
    )


def test_all_findings_of_all_tasks_come_at_once(scene, events, folds) -> None:
    (scene / "16000/train/train00.wav").unlink()
    edit(events / "train.json", lambda rows: rows.update({"train00.wav": [{}]}))
    edit(folds / "fold00.json", lambda rows: rows.update({name: [7] for name in rows}))
    findings = check_tasks(scene.parent, rate=16000)
    assert has_errors(findings)
    assert {finding.task for finding in findings} == {scene.name, events.name, folds.name}
    short = summarize(findings)
    assert "error: strokes-v1.0-full: 7 more of this kind (unknown label)" in short
    assert len(summarize(findings, limit=100)) == len(findings)


def test_hidden_folders_are_not_tasks(scene, tmp_path) -> None:
    (tmp_path / "tasks/.hidden").mkdir()
    (tmp_path / "tasks/.hidden/task_metadata.json").write_text("{}")
    assert check_tasks(tmp_path / "tasks") == []
    with pytest.raises(InputError, match="unknown task in"):
        check_tasks(tmp_path / "tasks", [".hidden"])


def test_a_folder_without_tasks_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no task in"):
        check_tasks(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        check_tasks(tmp_path / "nowhere")
