"""Labeled sets: what is read from task folders and CSV files, what is refused, how splits and caps arise."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from hear_m2d.evaluation.linear.datasets import (
    Clip,
    LabeledSet,
    read_labeled,
    split_by_class,
    spread_by_class,
)


@pytest.fixture
def csv_of(tmp_path):
    """Write a CSV and the files it names; return its path."""

    def write(text, name="set.csv"):
        (tmp_path / name).write_text(text)
        for line in text.splitlines()[1:]:
            file = line.split(",")[0].strip('"')
            if file.endswith(".wav"):
                soundfile.write(tmp_path / file, np.zeros(800), 16000)
        return tmp_path / name

    return write


def rows(**counts):
    """Lines of so many clips for each label."""
    return "\n".join(f"{label}{i}.wav,{label}" for label, count in counts.items() for i in range(count))


def test_a_task_of_train_valid_and_test_is_read(tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    found = read_labeled(task, 16000)
    assert (found.name, found.kind, found.metric, found.splits) == (
        task.name,
        "multiclass",
        "accuracy",
        "given",
    )
    assert found.classes == ("a", "b", "c", "d")
    assert Counter(clip.split for clip in found.clips) == {"train": 24, "valid": 12, "test": 12}
    listing = json.loads((task / "valid.json").read_text())
    for clip in found.clips:
        assert clip.path == task / "16000" / clip.split / clip.name
        if clip.split == "valid":
            assert clip.labels == tuple(listing[clip.name])


def test_labels_that_are_numbers_and_folds_are_read(tiny_tasks, tmp_path):
    found = read_labeled(tiny_tasks.folds(tmp_path), 16000)
    assert (found.splits, found.folds) == ("folds", ["fold00", "fold01", "fold02"])
    assert found.classes == ("0", "1", "2")


def test_a_multilabel_task_may_have_clips_without_labels(tiny_tasks, tmp_path):
    found = read_labeled(tiny_tasks.scene_multilabel(tmp_path), 16000)
    assert found.metric == "mAP"
    assert {len(clip.labels) for clip in found.clips} >= {0, 1, 2, 3}


def test_audio_at_another_rate_is_used_where_the_models_rate_is_missing(tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    assert read_labeled(task, 32000).clips[0].path.parts[-3] == "16000"


def test_event_tasks_are_refused_with_a_sentence(tiny_tasks, tmp_path):
    with pytest.raises(ValueError, match=r"a task of events .* only tasks of whole clips"):
        read_labeled(tiny_tasks.events(tmp_path), 16000)


def test_a_label_that_is_not_in_the_vocabulary_is_named_with_its_file(tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    listing = json.loads((task / "test.json").read_text())
    name = next(iter(listing))
    (task / "test.json").write_text(json.dumps({**listing, name: ["e"]}))
    with pytest.raises(ValueError, match=rf"test\.json: {name}: unknown label 'e'"):
        read_labeled(task, 16000)
    (task / "test.json").write_text(json.dumps({**listing, name: ["a", "b"]}))
    with pytest.raises(ValueError, match="2 labels; a multiclass clip has one"):
        read_labeled(task, 16000)


def test_a_binary_vocabulary_is_not_quoted_in_the_error(tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    (task / "labelvocabulary.csv").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"labelvocabulary\.csv is not a text file \(UTF-8\)$"):
        read_labeled(task, 16000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "must hold a JSON object"),
        ("{", "must hold a JSON object"),
        ('{"a.wav": "a"}', "must be a list, not 'a'"),
    ],
)
def test_a_listing_of_something_else_is_refused_by_name(text, why, tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    (task / "train.json").write_text(text)
    with pytest.raises(ValueError, match=rf"train\.json.*{why}"):
        read_labeled(task, 16000)


def test_audio_that_is_not_there_is_counted_and_named(tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    for clip in read_labeled(task, 16000).clips[:2]:
        clip.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"2 files that do not exist, first .*train00\.wav"):
        read_labeled(task, 16000)


def test_a_folder_or_path_that_is_not_a_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a HEAR task: it has no task_metadata\.json"):
        read_labeled(tmp_path, 16000)
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_labeled(tmp_path / "nowhere", 16000)


def test_a_csv_with_splits_is_taken_as_it_is(csv_of):
    found = read_labeled(
        csv_of("file,label,split\na.wav,x,train\nb.wav,y,train\nc.wav,x,valid\nd.wav,y,test\n"), 16000
    )
    assert (found.splits, found.kind, found.notes) == ("given", "multiclass", ())
    assert [clip.split for clip in found.clips] == ["train", "train", "valid", "test"]


def test_a_csv_with_folds_is_read(csv_of):
    lines = "\n".join(f"{fold}{i}.wav,{'xy'[i]},{fold}" for fold in "123" for i in range(2))
    found = read_labeled(csv_of(f"file,label,split\n{lines}\n"), 16000)
    assert (found.splits, found.folds) == ("folds", ["1", "2", "3"])


def test_a_csv_without_splits_is_split_by_class_and_says_so(csv_of):
    found = read_labeled(csv_of(f"file,label\n{rows(x=10, y=5, z=1)}\n"), 16000)
    assert found.splits == "ours"
    assert "splits are ours" in found.notes[0]
    counts = Counter((clip.labels[0], clip.split) for clip in found.clips)
    assert counts == {
        ("x", "train"): 6,
        ("x", "valid"): 2,
        ("x", "test"): 2,
        ("y", "train"): 3,
        ("y", "valid"): 1,
        ("y", "test"): 1,
        ("z", "train"): 1,
    }


def test_our_splits_do_not_depend_on_the_order_of_the_rows(csv_of):
    lines = rows(x=20, y=20).splitlines()
    first = read_labeled(csv_of("file,label\n" + "\n".join(lines)), 16000)
    second = read_labeled(csv_of("file,label\n" + "\n".join(lines[::-1]), "other.csv"), 16000)
    assert {c.name: c.split for c in first.clips} == {c.name: c.split for c in second.clips}
    # Not the first files of a class, which may be of one recording.
    train = [c.name for c in first.clips if c.split == "train" and c.labels == ("x",)]
    assert train != [f"x{i}.wav" for i in range(12)]


def test_labels_separated_by_commas_make_a_set_multilabel(csv_of):
    text = 'file,labels,split\na.wav,"x,y",train\nb.wav,x,train\nc.wav,,test\nd.wav,y,test\n'
    found = read_labeled(csv_of(text), 16000)
    assert found.kind == "multilabel"
    assert [clip.labels for clip in found.clips] == [("x", "y"), ("x",), (), ("y",)]


def test_a_label_with_a_comma_among_several_stands_in_quotes(csv_of):
    text = 'file,labels,split\na.wav,"""rain, heavy"", wind",train\nb.wav,wind,train\nc.wav,wind,test\n'
    labeled = read_labeled(csv_of(text), 16000)
    assert labeled.clips[0].labels == ("rain, heavy", "wind")


def test_labels_in_two_unicode_normal_forms_are_the_same_class(csv_of, tiny_tasks, tmp_path):
    text = "file,label,split\na.wav,caf\u00e9,train\nb.wav,x,train\nc.wav,cafe\u0301,test\n"
    assert read_labeled(csv_of(text), 16000).classes == ("caf\u00e9", "x")


def test_a_csv_with_file_and_file_name_means_the_same_files_as_for_prepare(csv_of, tmp_path):
    from hear_m2d.pretrain.data.sources import open_source

    path = csv_of(
        "file,file_name,label,split\na.wav,b.wav,x,train\nc.wav,d.wav,y,train\na.wav,c.wav,x,test\n"
    )
    for name in "bd":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(800), 16000)
    prepared = [entry.name for entry in open_source(path).part(0, 3)]
    assert [clip.name for clip in read_labeled(path, 16000).clips] == prepared == ["b.wav", "d.wav", "c.wav"]


def test_a_column_fold_makes_folds_of_any_names(csv_of):
    lines = "\n".join(f"{fold}{i}.wav,{'xy'[i]},{fold}" for fold in ("train", "b", "c") for i in range(2))
    labeled = read_labeled(csv_of(f"file,label,fold\n{lines}\n"), 16000)
    assert (labeled.splits, labeled.folds) == ("folds", ["b", "c", "train"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,class\na.wav,x\n", "must have a column file_name or file or path; it has name, class"),
        ("file,class\na.wav,x\n", "columns file, class; it needs file and label"),
        ("file,label\na.wav,x\nb.wav,\n", "b.wav has no label"),
        ("file,label\na.wav,x\na.wav,y\n", "line 3: a.wav is repeated"),
        ("file,label\n,x\n", "line 2: no file is named"),
        ("file,label,split\na.wav,x,train\nb.wav,y,\n", "b.wav has no split, and others have"),
        ("file,label,split\na.wav,x,train\nb.wav,y,1\n", "name them train, valid and test"),
        ("file,label,split\na.wav,x,1\nb.wav,y,2\n", "2 folds with clips; at least 3 are needed"),
        ("file,label,split\na.wav,x,train\nb.wav,y,train\n", "no test clips"),
        ("file,label,split\na.wav,x,train\nb.wav,x,train\nc.wav,x,test\n", "all have the same class"),
        ("file,label\n", "no train clips"),
    ],
)
def test_a_csv_that_cannot_be_probed_with_is_refused_with_a_sentence(text, says, csv_of):
    with pytest.raises(ValueError, match=says):
        read_labeled(csv_of(text), 16000)


def clips(**counts):
    return [
        Clip(f"{label}{i}", None, (label,), "train") for label, count in counts.items() for i in range(count)
    ]


def test_the_first_clips_of_the_spread_hold_each_class_in_its_share():
    order = spread_by_class(clips(x=60, y=30, z=10))
    for n in (10, 20, 50):
        counts = Counter(clip.labels[0] for clip in order[:n])
        assert counts == {"x": 0.6 * n, "y": 0.3 * n, "z": 0.1 * n}
    assert sorted(clip.name for clip in order) == sorted(clip.name for clip in clips(x=60, y=30, z=10))


def test_a_cap_leaves_each_split_its_share_and_says_so():
    all_clips = clips(x=60, y=60)
    split = split_by_class(all_clips)
    labeled = LabeledSet("set", "multiclass", ("x", "y"), tuple(split), "ours", 120)
    capped = labeled.limited(40)
    assert Counter(clip.split for clip in capped.clips) == {"train": 24, "valid": 8, "test": 8}
    assert Counter(clip.labels[0] for clip in capped.clips) == {"x": 20, "y": 20}
    assert capped.notes == ("40 of 120 clips",)
    assert labeled.limited(40) == capped
    assert labeled.limited(500) is labeled


def test_a_cap_that_leaves_nothing_to_learn_from_is_refused():
    split = tuple(split_by_class(clips(x=9, y=9)))
    with pytest.raises(ValueError, match="set, cut to 1 clips, all have the same class"):
        LabeledSet("set", "multiclass", ("x", "y"), split, "ours", 18).limited(1)
