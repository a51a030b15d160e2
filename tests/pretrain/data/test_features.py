"""What a recipe trains on: labels and stored features land on the crop that they belong to."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.data.crops import Crops
from hear_m2d.pretrain.data.features import FeatureCrops, training_items
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import Recipe, replace_fields

SMALL = Recipe(
    objective="m2d",
    encoder=EncoderConfig(width=64, depth=1, heads=1, input_size=(80, 40), patch_size=(80, 4)),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    steps=1,
)
LABELS, FEATURES = (replace_fields(SMALL, {"offline.source": source}) for source in ("labels", "features"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Clips of 0.3, 1 and 3 s, the last prepared in three pieces; a list that labels them."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    with (folder / "list.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        for name, seconds, label in [("a.wav", 0.3, "dog,cat"), ("b.wav", 1.0, ""), ("c.wav", 3.0, "cat")]:
            soundfile.write(folder / name, 0.1 * rng.standard_normal(int(seconds * 16000)), 16000)
            writer.writerow([name, label])
    return folder


@pytest.fixture(scope="module")
def data(audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "d"
    prepare(audio / "list.csv", out, max_clip_s=1)
    return LogMelData(out)


@pytest.fixture
def features(data, tmp_path):
    """Vectors (number of the file, number of the vector), two frames each."""
    folder = tmp_path / "features"
    folder.mkdir()
    for number, (name, seconds) in enumerate({"a.wav": 0.3, "b.wav": 1.0, "c.wav": 3.0}.items()):
        vectors = int(seconds * 50) - 1  # as networks without padding make them
        index = np.arange(vectors, dtype=np.float32)
        np.save(folder / f"{name}.npy", np.stack([np.full(vectors, number, np.float32), index], axis=1))
    return folder


def test_features_are_those_of_the_columns_of_the_crop(data, features):
    items = training_items(FEATURES, data, features=features)
    assert isinstance(items, Crops)
    checked = 0
    for epoch in range(8):
        for clip in range(len(data)):
            target = items[epoch, clip]["target"]
            assert target.shape == (10, 2)
            name, begins_s = data.origin(clip)
            assert set(target[:, 0].tolist()) == {float("abc".index(name[0]))}
            first = (round(begins_s * 100) + items.start((epoch, clip))) // 2
            last = {"a": 13, "b": 48, "c": 148}[name[0]]
            for column in range(10):  # each column is four frames: the mean of two vectors
                pair = [min(first + 2 * column + k, last) for k in range(2)]
                assert target[column, 1] == np.mean(pair)
                checked += pair[1] < last
    assert checked > 100
    assert {round(data.origin(clip)[1], 2) for clip in range(len(data))} > {0.0, 1.0}


def test_the_spectrogram_is_that_of_the_same_crop_without_features(data, features):
    with_features = training_items(FEATURES, data, features=features)
    for key in [(0, 1), (3, 4)]:
        assert torch.equal(with_features[key]["x"], training_items(SMALL, data)[key]["x"])


def test_labels_are_multi_hot_over_the_sorted_classes(data):
    items = training_items(LABELS, data)
    assert data.labels == ("cat", "dog")
    actual = {data.origin(clip)[0]: items[0, clip]["target"].tolist() for clip in range(len(data))}
    assert actual == {"a.wav": [1, 1], "b.wav": [0, 0], "c.wav": [1, 0]}


def test_noise_and_features_go_together(data, features):
    recipe = replace_fields(FEATURES, {"noise_ratio": 0.2})
    item = training_items(recipe, data, noise=data, features=features)[0, 1]
    assert item.keys() == {"x", "clean", "target"}
    assert not torch.equal(item["x"], item["clean"])


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({"offline.source": "features"}, {}, "give --features FOLDER"),
        ({}, {"features": True}, 'used only with offline.source = "features"'),
        ({"noise_ratio": 0.2}, {}, "needs noise: give --noise FOLDER, or --set noise_ratio=0"),
        ({}, {"noise": True}, "noise_ratio = 0 leaves the noise"),
    ],
)
def test_missing_and_unneeded_folders_are_named(data, features, fields, given, message):
    given = {name: {"features": features, "noise": data}[name] for name in given}
    with pytest.raises(ValueError, match=message):
        training_items(replace_fields(SMALL, fields), data, **given)


def test_data_without_labels_is_refused(audio, tmp_path):
    prepare(audio / "b.wav", tmp_path / "d")
    with pytest.raises(ValueError, match="has no labels"):
        training_items(LABELS, LogMelData(tmp_path / "d"))


def test_features_that_do_not_belong_to_the_audio_are_refused(data, features):
    crops = FeatureCrops(data, features, frames=40)
    clip = next(i for i in range(len(data)) if data.origin(i)[0] == "b.wav")
    path = features / "b.wav.npy"
    for wrong, message in [
        (np.zeros((20, 2), np.float32), "has 20 vectors, fewer than the 50 of its audio"),
        (np.zeros(50, np.float32), r"holds float32 of shape \[50\]"),
        (np.zeros((50, 2), int), "holds int64"),
    ]:
        np.save(path, wrong)
        with pytest.raises(ValueError, match=message):
            crops[0, clip]
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.wav\.npy is missing, or not an array"):
        crops[0, clip]
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.wav\.npy is missing, or not"):
        crops[0, clip]


def test_a_folder_of_features_that_is_not_there_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="is not a folder of features"):
        training_items(FEATURES, data, features=tmp_path / "none")


def test_missing_features_are_counted_before_training(data, features):
    asked = FEATURES
    (features / "b.wav.npy").unlink()
    with pytest.raises(
        ValueError, match=r"lacks the features of 1 of the 3 files of the data: b\.wav\.npy\. "
    ):
        training_items(asked, data, features=features)
    for name in "ac":
        (features / f"{name}.wav.npy").unlink()
    with pytest.raises(
        ValueError, match=r"of 3 of the 3 files .*: a\.wav\.npy, b\.wav\.npy, c\.wav\.npy\. Store"
    ):
        training_items(asked, data, features=features)


def test_features_lie_below_their_folder_as_the_audio_does(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one/a.wav", "two/deep/b.wav"):
        (tmp_path / "audio" / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / "audio" / name, 0.1 * rng.standard_normal(16000), 16000)
        (tmp_path / "features" / name).parent.mkdir(parents=True)
        np.save(tmp_path / "features" / f"{name}.npy", np.zeros((50, 2), np.float32))
    prepare(tmp_path / "audio", tmp_path / "d")
    data = LogMelData(tmp_path / "d")
    assert FeatureCrops(data, tmp_path / "features", frames=40)[0, 1]["target"].shape == (20, 2)
    (tmp_path / "features" / "two" / "deep" / "b.wav.npy").unlink()
    (tmp_path / "features" / "two" / "deep").rmdir()
    with pytest.raises(ValueError, match=r"of 1 of the 2 files of the data: two/deep/b\.wav\.npy\. Store"):
        FeatureCrops(data, tmp_path / "features", frames=40)
