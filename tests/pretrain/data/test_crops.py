import hashlib
import json
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.data.crops import Crops, crop_into
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData, require_frontend
from hear_m2d.pretrain.data.sampling import StepBatches, draw, epoch_order

SECONDS = (0.3, 1.0, 2.0, 0.5, 1.3)  # 31, 101, 201, 51, 131 frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    for index, seconds in enumerate(SECONDS):
        wave = rng.standard_normal(int(16000 * seconds)) * np.linspace(0.01, 0.3, int(16000 * seconds))
        soundfile.write(root / "audio" / f"{index}.wav", wave, 16000)
    prepare(root / "audio", root / "prepared")
    return root / "prepared"


@pytest.fixture
def data(folder):
    return LogMelData(folder)


@pytest.fixture
def damaged(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def crop(logmel, start, frames, mean, std):
    out = np.full((len(logmel), frames), np.nan, np.float32)
    crop_into(out, logmel, start, mean, std)
    return out


def test_clips_are_views_of_the_file(data):
    assert len(data) == 5
    assert [data.frames(index) for index in range(5)] == [31, 101, 201, 51, 131]
    logmel = data.logmel(2)
    assert logmel.shape == (80, 201)
    assert logmel.dtype == np.float16
    assert not logmel.flags.writeable
    assert not logmel.flags.owndata
    assert data.hours == pytest.approx(sum(SECONDS) / 3600)


def test_opened_data_travels_to_a_spawned_process(data):
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.logmel(3), data.logmel(3))


def test_a_crop_is_standardized():
    logmel = np.random.default_rng(0).normal(-7, 4, (80, 50)).astype(np.float16)
    out = crop(logmel, 10, 20, mean=-7.0, std=4.0)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (logmel[:, 10:30].astype(np.float64) + 7) / 4, atol=1e-6)


def test_a_clip_shorter_than_the_crop_is_padded_with_the_mean_at_its_end():
    logmel = np.full((80, 5), -3, np.float16)
    out = crop(logmel, 0, 8, mean=-7.0, std=4.0)
    np.testing.assert_array_equal(out[:, :5], 1)
    np.testing.assert_array_equal(out[:, 5:], 0)


def test_a_crop_leaves_the_data_as_it_was(data):
    before = data.logmel(2).copy()
    crop(data.logmel(2), 3, 100, data.mean, data.std)
    np.testing.assert_array_equal(data.logmel(2), before)


def test_every_start_is_drawn_the_first_and_the_last_too(data):
    crops = Crops(data, frames=196)
    assert {crops.start((epoch, 2)) for epoch in range(200)} == set(range(201 - 196 + 1))
    assert {crops.start((epoch, 0)) for epoch in range(20)} == {0}
    exact = Crops(data, frames=201)
    assert {exact.start((epoch, 2)) for epoch in range(20)} == {0}


def test_an_item_is_the_crop_at_its_start_and_follows_from_seed_epoch_and_clip(data):
    crops = Crops(data, frames=60, seed=4)
    item = crops[7, 2]["x"]
    assert item.shape == (1, 80, 60)
    words = (4).to_bytes(8, "little") + (7).to_bytes(8, "little") + (2).to_bytes(8, "little")
    start = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") % (201 - 60 + 1)
    expected = (data.logmel(2)[:, start : start + 60].astype(np.float64) - data.mean) / data.std
    np.testing.assert_allclose(item[0].numpy(), expected, atol=1e-5)
    assert torch.equal(item, Crops(data, frames=60, seed=4)[7, 2]["x"])
    assert not torch.equal(item, crops[8, 2]["x"])
    assert not torch.equal(item, Crops(data, frames=60, seed=5)[7, 2]["x"])


def test_the_mean_over_whole_clips_is_zero_and_the_deviation_one(data):
    crops = [Crops(data, frames=data.frames(clip))[0, clip]["x"] for clip in range(len(data))]
    bins = torch.cat([crop.flatten() for crop in crops])
    assert float(bins.mean()) == pytest.approx(0, abs=1e-4)
    assert float(bins.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_an_epoch_holds_every_clip_once_in_an_order_of_its_own():
    orders = [epoch_order(50, seed=1, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[2], epoch_order(50, seed=1, epoch=2))
    assert not np.array_equal(orders[0], epoch_order(50, seed=2, epoch=0))


@pytest.mark.parametrize(("batch_size", "n_clips"), [(4, 10), (5, 10), (7, 3), (1, 1)])
def test_batches_are_the_epochs_one_after_another(batch_size, n_clips):
    keys = [
        key for keys in StepBatches(0, 20, batch_size=batch_size, n_clips=n_clips, seed=3) for key in keys
    ]
    stream = [
        (epoch, int(clip)) for epoch in range(200) for clip in epoch_order(n_clips, seed=3, epoch=epoch)
    ]
    assert keys == stream[: 20 * batch_size]


def test_steps_resumed_are_the_steps_of_the_whole_run():
    settings = {"batch_size": 4, "n_clips": 10, "seed": 0}
    whole = list(StepBatches(0, 12, **settings))
    assert len(StepBatches(5, 12, **settings)) == 7
    assert list(StepBatches(5, 12, **settings)) == whole[5:]
    with pytest.raises(ValueError, match="cannot be made"):
        StepBatches(0, 1, batch_size=0, n_clips=10, seed=0)


def test_what_a_run_sees_does_not_depend_on_the_loader_processes(data):
    steps = StepBatches(0, 4, batch_size=3, n_clips=len(data), seed=0)
    here = [Crops(data, frames=40).__getitems__(keys) for keys in steps]
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    for workers in (1, 2):
        loader = DataLoader(
            Crops(data, frames=40),
            batch_sampler=steps,
            num_workers=workers,
            multiprocessing_context=context,
            collate_fn=dict,
        )
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(here, loader, strict=True))
    assert here[0]["x"].shape == (3, 1, 80, 40)


def test_a_folder_that_was_not_prepared_says_what_to_type(tmp_path):
    with pytest.raises(ValueError, match=r"is not a prepared folder.*hear-m2d prepare AUDIO_DIR"):
        LogMelData(tmp_path)


def test_a_truncated_shard_is_named(damaged):
    shard = damaged / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"shard-00000\.arrow has \d+ bytes instead of \d+"):
        LogMelData(damaged)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.arrow is missing"):
        LogMelData(damaged)


def test_a_shard_of_other_bytes_is_named(damaged):
    shard = damaged / "shard-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match=r"shard-00000\.arrow is damaged"):
        LogMelData(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99; this version reads 2"),
        ({"format": 1}, "has format 1; this version reads 2"),
        ({"format": None}, "has format None"),
        ({"shards": None}, "is damaged"),
        ({"mean": None}, "is damaged"),
        ({"frontend": {"colour": 1}}, "is damaged"),
    ],
)
def test_a_data_file_with_wrong_fields_is_refused(damaged, change, message):
    path = damaged / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        LogMelData(damaged)


def test_a_data_file_that_is_not_json_is_refused(damaged):
    (damaged / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        LogMelData(damaged)


def test_a_crop_without_frames_is_refused(data):
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        Crops(data, frames=0)


def test_several_items_are_stacked_and_are_those_one_by_one(data):
    crops = Crops(data, frames=40, seed=2)
    keys = [(0, 3), (1, 0), (0, 3)]
    x = crops.__getitems__(keys)["x"]
    assert x.shape == (3, 1, 80, 40)
    for key, row in zip(keys, x, strict=True):
        assert torch.equal(crops[key]["x"], row)


def test_draws_are_uniform_and_depend_on_every_word():
    drawn = [draw(5, 0, epoch, clip) for epoch in range(100) for clip in range(100)]
    assert np.abs(np.bincount(drawn, minlength=5) - 2000).max() < 200  # five standard deviations
    assert len({draw(1 << 60, *words) for words in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 4


def test_another_front_end_is_refused_and_both_are_named(data):
    require_frontend(data, data.frontend)
    message = r"another front end .*sample_rate is 16000 there, 32000 now; .*--sample-rate 32000"
    with pytest.raises(ValueError, match=message):
        require_frontend(data, FrontendConfig.for_rate(32000))
    with pytest.raises(ValueError, match=r"\(n_mels is 80 there, 64 now\)"):
        require_frontend(data, replace(data.frontend, n_mels=64))


def test_labels_that_are_not_there_cannot_be_asked_for(data):
    with pytest.raises(ValueError, match="has no labels: prepare it from a list with a column `label`"):
        Crops(data, labels=True)
