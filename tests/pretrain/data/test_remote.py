"""A prepared set behind http://: the same items in an order of its own, whatever fetches and caches."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hear_m2d.pretrain.data import prepare as module
from hear_m2d.pretrain.data import remote
from hear_m2d.pretrain.data.crops import Crops, LogMelData, StepBatches, collate, open_data, step_batches
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import address_of
from hear_m2d.pretrain.data.remote import RemoteData, WindowBatches

pytest.importorskip("aiohttp")
CLIPS = 21  # but for a duplicate, in seven shards of three


class Handler(SimpleHTTPRequestHandler):
    """A folder, with a list of what was asked for, and of how often it is to fail first."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        if self.server.failures.get(name, 0) > 0:
            self.server.failures[name] -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for index in range(CLIPS):
        name = f"{index:02d}.wav"
        soundfile.write(root / "audio" / name, 0.1 * rng.standard_normal(4000 + 400 * index), 16000)
        lines.append(f"{name},{'ab'[index % 2]}")
    (root / "audio" / "10.wav").write_bytes((root / "audio" / "03.wav").read_bytes())
    (root / "audio" / "list.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARD_ITEMS", (3, 3))
        prepare(root / "audio" / "list.csv", root / "prepared")
    return root / "prepared"


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HEAR_M2D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAITS_S", (0.01, 0.01))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder.parent)))
    server.asked, server.failures = [], {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def address(server):
    return f"http://127.0.0.1:{server.server_port}/prepared"


def batches(data, first=0, last=9, *, batch_size=4, seed=5):
    return list(WindowBatches(data, first, last, batch_size=batch_size, seed=seed))


def test_a_remote_set_is_the_local_one_clip_for_clip(address, folder):
    data, local = open_data(address), LogMelData(folder)
    assert isinstance(data, RemoteData)
    assert len(data) == len(local) == CLIPS - 1
    for name in ("mean", "std", "hours", "labels"):
        assert getattr(data, name) == getattr(local, name)
    for index in range(len(local)):
        np.testing.assert_array_equal(data.logmel(index), local.logmel(index))
        assert data.frames(index) == local.frames(index)
        assert data.label(index) == local.label(index)
    for frames in (10, 30, 60, 200):
        assert data.count_shorter(frames) == local.count_shorter(frames)
    crops, wanted = (Crops(one, frames=20, seed=3, labels=True) for one in (data, local))
    for key in ((0, 0), (4, 19)):
        for name in ("x", "target"):
            assert torch.equal(crops[key][name], wanted[key][name])


def test_an_epoch_holds_every_clip_once_in_windows_of_whole_shards(address):
    data = RemoteData(address, window=2)
    keys = [key for batch in batches(data, 0, 10) for key in batch]  # two epochs
    for epoch in (0, 1):
        clips = [clip for found, clip in keys if found == epoch]
        assert sorted(clips) == list(range(len(data)))
        shards = [next(s for s in range(7) if clip in data.clips_of(s)) for clip in clips]
        place = 0
        for window in WindowBatches(data, 0, 1, batch_size=4, seed=5).windows(epoch):
            size = sum(len(data.clips_of(shard)) for shard in window)
            assert set(shards[place : place + size]) == set(window)
            place += size
    assert keys[:20] != [(0, clip) for _, clip in keys[20:]]
    assert batches(data, 0, 10, seed=6) != batches(data, 0, 10)
    assert sorted(map(sorted, WindowBatches(data, 0, 1, batch_size=4, seed=5).windows(0))) != sorted(
        map(sorted, WindowBatches(data, 0, 1, batch_size=4, seed=5).windows(1))
    )


def test_a_resumed_run_sees_what_the_whole_run_would_have_seen(address):
    data = RemoteData(address, window=3)
    whole = batches(data, 0, 20, batch_size=3)
    for first in (1, 6, 7, 13):
        assert batches(data, first, 20, batch_size=3) == whole[first:]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_what_a_run_sees_does_not_depend_on_the_loader_processes(address, context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    data = RemoteData(address, window=2)
    steps = WindowBatches(data, 0, 8, batch_size=4, seed=1)
    here = list(DataLoader(Crops(data, frames=20), batch_sampler=steps, collate_fn=collate))
    data = RemoteData(address, window=2)  # nothing of it is open
    for path in data.cache.glob("shard-*"):
        path.unlink()
    loader = DataLoader(
        Crops(data, frames=20),
        batch_sampler=steps,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context=context,
    )
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(here, loader, strict=True))
    assert len(here) == 8


def test_each_shard_is_fetched_once_though_several_want_it_and_the_next_window_ahead(address, server):
    data = RemoteData(address, window=2)
    found = iter(WindowBatches(data, 0, 5, batch_size=4, seed=1))
    next(found)
    threads = [threading.Thread(target=lambda: [data.fetch(n) for n in range(7)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    list(found)
    shards = [name for name in server.asked if name.endswith(".arrow")]
    assert sorted(shards) == [facts.file for facts in data.shards]


def test_the_windows_shards_are_fetched_before_they_are_asked_for(address, server):
    data = RemoteData(address, window=2)
    steps = WindowBatches(data, 0, 5, batch_size=4, seed=1)
    found = iter(steps)
    next(found)
    wanted = {data.shards[n].file for window in steps.windows(0)[:2] for n in window}
    for _ in range(1000):
        if wanted <= set(server.asked):
            break
        threading.Event().wait(0.01)
    assert {name for name in server.asked if name.endswith(".arrow")} == wanted


def test_the_cache_is_bounded_and_what_was_used_last_stays(address, server):
    data = RemoteData(address, window=1, cache_bytes=1)
    assert data.cache_bytes == sum(sorted(facts.bytes for facts in data.shards)[-3:])
    for number in (5, 4, 5, 6, 3):  # 4, 5 and 6 are the largest and fill it
        data.fetch(number)
    held = {path.name for path in data.cache.glob("shard-*.arrow")}
    assert held == {data.shards[number].file for number in (3, 5, 6)}
    clip = data.clips_of(4)[0]
    assert data.logmel(clip).shape == (80, data.frames(clip))
    assert server.asked.count(data.shards[4].file) == 2


def test_a_server_that_fails_now_and_then_is_asked_again(address, server):
    server.failures = {"data.json": 1, "shard-00002.arrow": 2}
    data = RemoteData(address)
    assert len(data.logmel(data.clips_of(2)[0])) == 80
    assert server.asked.count("shard-00002.arrow") == 3
    server.failures = {"shard-00003.arrow": 99}
    with pytest.raises(ConnectionError, match=r"shard-00003\.arrow cannot be fetched: .*503"):
        data.logmel(data.clips_of(3)[0])


def test_a_shard_cut_short_is_never_taken(address, server, folder, monkeypatch):
    data = RemoteData(address)
    facts = data.shards[1]
    data.shards[1] = facts._replace(bytes=facts.bytes + 1)
    with pytest.raises(ConnectionError, match=rf"it has {facts.bytes} bytes instead of {facts.bytes + 1}"):
        data.fetch(1)
    assert not [p for p in data.cache.iterdir() if p.suffix in (".arrow", ".tmp")]


def test_a_damaged_shard_in_the_cache_is_fetched_anew(address, server):
    data = RemoteData(address)
    path = data.fetch(4)
    path.write_bytes(bytes(path.stat().st_size))
    assert data.logmel(data.clips_of(4)[0]).shape[0] == 80
    assert server.asked.count(path.name) == 2


def test_what_cannot_be_opened_is_said_in_a_sentence(address, server):
    with pytest.raises(ValueError, match=r"there is no prepared set at .*/gone"):
        RemoteData(address.replace("prepared", "gone"))
    with pytest.raises(ValueError, match="of no kind that fsspec knows"):
        RemoteData("nothing://host/prepared")
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:.* cannot be fetched"):
        RemoteData(address)


@pytest.mark.parametrize("value", ["lots", "nan", "inf", "-1", "16 GB"])
def test_a_size_of_the_cache_that_is_none_is_said_with_its_variable(address, monkeypatch, value):
    monkeypatch.setenv("HEAR_M2D_SHARD_CACHE_GB", value)
    with pytest.raises(ValueError, match=rf"HEAR_M2D_SHARD_CACHE_GB is '{value}'; it is a number of GiB"):
        RemoteData(address)
    monkeypatch.setenv("HEAR_M2D_SHARD_CACHE_GB", "2.5")
    assert RemoteData(address).cache_bytes == 2.5 * 2**30


def test_opened_data_travels_to_a_spawned_process(address):
    data = pickle.loads(pickle.dumps(RemoteData(address, window=3)))
    assert data.window == 3
    assert data.folder == address


def test_the_kind_of_data_decides_the_order(address, folder):
    assert type(step_batches(LogMelData(folder), 0, 1, batch_size=2, seed=0)) is StepBatches
    assert type(step_batches(open_data(address), 0, 1, batch_size=2, seed=0)) is WindowBatches
    assert address_of("http:/host/a") == "http://host/a"
    assert address_of("s3://bucket/a") == "s3://bucket/a"
    assert address_of("file:///a") == address_of("file:/a") == "file:///a"
    assert address_of("C:/a") == ""
    assert len(open_data(f"file://{folder}")) == CLIPS - 1
    assert address_of("/local/a:b/c") == address_of("relative/a") == ""


@pytest.mark.slow
def test_a_network_trains_on_a_remote_set_and_a_run_that_was_killed_ends_as_the_whole_one(address, tmp_path):
    recipe = {"width": 16, "depth": 1, "heads": 2, "input_frames": 32, "batch_size": 4, "steps": 300}
    recipe |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    lines = [
        'objective = "m2d"',
        'precision = "float32"',
        *(f"{key} = {value}" for key, value in recipe.items()),
    ]
    (tmp_path / "r.toml").write_text("\n".join(lines))
    command = [sys.executable, "-c", "from hear_m2d.cli import main; main()", "pretrain", "--data", address]
    command += ["--recipe", tmp_path / "r.toml", "--workers", "1", "--log-every", "1", "--save-every", "20"]

    def start(out):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, "--out", tmp_path / out], env=environment)

    assert start("whole").wait() == 0
    cut = start("cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 50:
        assert cut.poll() is None
        time.sleep(0.01)
    cut.kill()
    cut.wait()
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert start("cut").wait() == 0
    whole, cut = (load_file(tmp_path / out / "checkpoint.safetensors") for out in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["data"]["clips"] == CLIPS - 1
