"""The generated tasks are what the official harness reads."""

import csv
import json

import pytest
import real_task
import soundfile
import tasks


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {path.name: path for path in tasks.write_tasks(tmp_path_factory.mktemp("demo") / "tasks")}


@pytest.fixture(params=tasks.TASKS, ids=lambda task: task.name)
def task(request):
    return request.param


def listing(folder, split):
    return json.loads((folder / f"{split}.json").read_text())


def test_the_tasks_folder_holds_nothing_else(folders):
    parents = {path.parent for path in folders.values()}
    assert len(parents) == 1
    assert {path.name for path in parents.pop().iterdir()} == set(folders)


def test_metadata_say_what_the_harness_reads(folders, task):
    found = json.loads((folders[task.folder] / "task_metadata.json").read_text())
    assert task.folder == f"{found['task_name']}-{found['version']}-{found['mode']}"
    assert found["embedding_type"] in {"scene", "event"}
    assert found["prediction_type"] in {"multiclass", "multilabel"}
    assert found["split_mode"] == "trainvaltest"
    assert set(found["splits"]) == {"train", "valid", "test"}
    assert found["evaluation"]
    assert found["sample_duration"] == task.seconds


def test_vocabulary_is_sorted_and_without_gaps(folders, task):
    with (folders[task.folder] / "labelvocabulary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["idx"]) for row in rows] == list(range(len(rows)))
    assert [row["label"] for row in rows] == sorted(task.labels)


def test_every_clip_is_listed_once_and_of_exact_length(folders, task):
    names = []
    for split, count in task.clips.items():
        listed = listing(folders[task.folder], split)
        audio = {path.name: path for path in (folders[task.folder] / "16000" / split).iterdir()}
        assert set(listed) == set(audio)
        assert len(listed) == count
        names += listed
        for path in audio.values():
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert info.frames == round(task.seconds * 16_000)
    assert len(names) == len(set(names)) <= 60


def test_every_class_is_in_every_split(folders, task):
    for split in task.clips:
        labels = [
            label["label"] if isinstance(label, dict) else label
            for clip in listing(folders[task.folder], split).values()
            for label in clip
        ]
        assert set(labels) == set(task.labels)


def test_labels_have_the_form_of_their_kind(folders, task):
    for split in task.clips:
        for labels in listing(folders[task.folder], split).values():
            if task.embedding_type == "event":
                assert all(0 <= e["start"] < e["end"] - 250 for e in labels), "shorter than the median filter"
                assert all(e["end"] <= 1000 * task.seconds for e in labels)
            elif task.prediction_type == "multiclass":
                assert len(labels) == 1
            else:
                assert 1 <= len(set(labels)) == len(labels) <= 3


def test_the_same_tasks_come_out_every_time(folders, tmp_path):
    again = tasks.write_task(tasks.TASKS[-1], tmp_path / "tasks")
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (again / file).read_bytes() == (folders[again.name] / file).read_bytes()


def test_the_real_task_is_complete_in_the_layout_of_the_harness(tmp_path):
    folder = real_task.write_real_task(tmp_path / "tasks")
    counts = {}
    for split in ("train", "valid", "test"):
        listed = listing(folder, split)
        audio = list((folder / "16000" / split).iterdir())
        assert {path.name for path in audio} == set(listed)
        info = [soundfile.info(path) for path in audio]
        assert {(one.samplerate, one.channels, one.subtype, one.frames) for one in info} == {
            (16_000, 1, "PCM_16", 16_000)
        }
        counts[split] = len(audio)
    assert counts == {"train": 360, "valid": 60, "test": 120}
    speakers = [{name.split("_")[0] for name in listing(folder, split)} for split in counts]
    assert not speakers[0] & speakers[2]
    assert "CC BY 4.0" in real_task.ABOUT


def test_a_complete_real_task_is_not_written_again(tmp_path):
    folder = real_task.write_real_task(tmp_path / "tasks")
    (folder / "test.json").write_text("mine")
    assert real_task.write_real_task(tmp_path / "tasks") == folder
    assert (folder / "test.json").read_text() == "mine"
