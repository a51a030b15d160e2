"""The papers' data sets, each read from a made folder of its exact layout."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from hear_m2d.evaluation.linear.named_sets import SETS, read_named
from hear_m2d.utils.errors import InputError


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16000)


def esc50(root):
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain")):
            name = f"{fold}-100032-A-{target}.wav"
            rows.append(f"{name},{fold},{target},{category},True,100032,A")
            sound(root / "audio" / name)
    (root / "meta").mkdir()
    (root / "meta/esc50.csv").write_text("\n".join(rows) + "\n")


def us8k(root):
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, label in enumerate(("dog_bark", "siren")):
            name = f"{fold}00{number}-3-0-0.wav"
            rows.append(f"{name},{fold}00,0.0,0.3,1,{fold},{number},{label}")
            sound(root / "audio" / f"fold{fold}" / name)
    (root / "metadata").mkdir()
    (root / "metadata/UrbanSound8K.csv").write_text("\n".join(rows) + "\n")


def spcv2(root):
    for word in ("yes", "no"):
        for index in range(5):
            sound(root / word / f"004ae714_nohash_{index}.wav")
    sound(root / "_background_noise_/white_noise.wav")
    (root / "validation_list.txt").write_text("yes/004ae714_nohash_1.wav\nno/004ae714_nohash_1.wav\n")
    (root / "testing_list.txt").write_text("yes/004ae714_nohash_2.wav\nno/004ae714_nohash_0.wav\n")


def vc1(root, wav="wav"):
    lines = []
    for speaker in ("id10001", "id10270"):
        for index, split in enumerate((1, 1, 2, 3)):
            name = f"{speaker}/1zcIwhmdeo4/{index:05d}.wav"
            lines.append(f"{split} {name}")
            sound(root / (wav if speaker == "id10001" else wav.replace("dev", "test")) / name)
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")


def nsynth(root):
    for split, count in (("train", 3), ("valid", 1), ("test", 1)):
        notes = {}
        for family in ("bass", "guitar"):
            for index in range(count):
                name = f"{family}_acoustic_{index:03d}-060-100"
                notes[name] = {"instrument_family_str": family, "pitch": 60}
                sound(root / f"nsynth-{split}/audio/{name}.wav")
        (root / f"nsynth-{split}/examples.json").write_text(json.dumps(notes))


@pytest.mark.parametrize(
    ("name", "make", "classes", "splits"),
    [
        ("esc50", esc50, ("dog", "rain"), {f"fold{fold}": 2 for fold in range(1, 6)}),
        ("us8k", us8k, ("dog_bark", "siren"), {f"fold{fold:02d}": 2 for fold in range(1, 11)}),
        ("spcv2", spcv2, ("no", "yes"), {"train": 6, "valid": 2, "test": 2}),
        ("vc1", vc1, ("id10001", "id10270"), {"train": 4, "valid": 2, "test": 2}),
        ("nsynth", nsynth, ("bass", "guitar"), {"train": 6, "valid": 2, "test": 2}),
    ],
)
def test_a_data_set_is_split_as_its_own_files_say(name, make, classes, splits, tmp_path):
    make(tmp_path)
    labeled = read_named(name, tmp_path)
    assert labeled.classes == classes
    assert Counter(clip.split for clip in labeled.clips) == splits
    assert (labeled.name, labeled.published, labeled.unit_s) == (name, name, SETS[name].unit_s)
    assert "not comparable" in labeled.notes[0]  # a made folder has fewer clips than the published set


def test_voxceleb_unpacked_into_dev_and_test_is_found(tmp_path):
    vc1(tmp_path, wav="dev/wav")
    assert len(read_named("vc1", tmp_path).clips) == 8


@pytest.mark.parametrize(
    ("name", "files", "label"),
    [
        ("cremad", "AudioWAV/10{i:02d}_DFA_{c}_XX.wav", {"ANG", "SAD"}),
        ("gtzan", "genres/{c}/x.{i:05d}.wav", {"ANG", "SAD"}),
        ("voxforge", "{c}/speaker-{i}/wav/a.wav", {"ANG", "SAD"}),
        ("surge", "tone{i}/{c}.ogg", {"ANG", "SAD"}),
    ],
)
def test_a_set_with_a_split_csv_takes_labels_from_its_layout_and_says_it_is_not_comparable(
    name, files, label, tmp_path
):
    rows = ["file,split"]
    for i, split in enumerate(("train", "train", "valid", "test", "")):
        for c in sorted(label):
            file = files.format(i=i, c=c)
            sound(tmp_path / file)
            rows.append(f"{file},{split}")
    path = tmp_path / "split.csv"
    path.write_text("\n".join(rows) + "\n")
    labeled = read_named(name, tmp_path, path)
    assert set(labeled.classes) == label
    # A clip without a split must not land in the training.
    assert Counter(clip.split for clip in labeled.clips) == {"train": 4, "valid": 2, "test": 2}
    assert "not comparable with published figures" in labeled.notes[0]
    assert labeled.notes[1] == "2 files without a split are left out"
    with pytest.raises(ValueError, match=f"needs --split-csv {name}=FILE"):
        read_named(name, tmp_path)


def test_a_folder_in_a_split_csv_stands_for_its_files(tmp_path):
    rows = ["file,split"]
    for i, split in enumerate(("train", "valid", "test")):
        for note in range(3):
            sound(tmp_path / f"tone{i}" / f"{60 + note}.ogg")
        rows.append(f"tone{i},{split}")
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    labeled = read_named("surge", tmp_path, tmp_path / "split.csv")
    assert labeled.classes == ("60", "61", "62")
    assert Counter(clip.split for clip in labeled.clips) == {"train": 3, "valid": 3, "test": 3}


def test_wrong_input_to_a_named_set_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'esc5'.* Did you mean esc50"):
        read_named("esc5", tmp_path)
    with pytest.raises(FileNotFoundError, match="root folder of ESC-50"):
        read_named("esc50", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no meta/esc50\.csv: give the folder as the data set is"):
        read_named("esc50", tmp_path)
    esc50(tmp_path)
    with pytest.raises(ValueError, match="ESC-50 defines its own split"):
        read_named("esc50", tmp_path, tmp_path / "split.csv")
    (tmp_path / "audio/1-100032-A-0.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 files that do not exist"):
        read_named("esc50", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "esc50",
            "meta/esc50.csv",
            b"filename,category\n0.wav,dog\n",
            "line 2: nothing is in the column fold",
        ),
        ("us8k", "metadata/UrbanSound8K.csv", b"slice_file_name,fold\n0.wav,x\n", "in the column class"),
        ("vc1", "iden_split.txt", b"9 id1/a/0.wav\n", "gives id1/a/0.wav the split 9"),
        ("vc1", "iden_split.txt", b"\xff\xfe\x00", "is not a text file"),
        ("nsynth", "nsynth-train/examples.json", b"{bad", "is damaged"),
        ("nsynth", "nsynth-train/examples.json", b'{"a": {}}', "a has no instrument_family_str"),
    ],
)
def test_a_damaged_file_of_a_data_set_is_named(name, file, content, message, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_named(name, tmp_path)
    assert str(tmp_path / file) in str(error.value)
