"""Decoding in worker processes: order, budget, and what becomes of a process that dies."""

import os
import signal
import time

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import Sound
from hear_m2d.embed import decode as embed_decode
from hear_m2d.embed.decode import Failure, decode, read_clips
from hear_m2d.embed.inputs import collect_inputs
from hear_m2d.utils.errors import WorkFailedError


@pytest.fixture
def clips(tmp_path):
    """Twelve clips of growing length; the sixth is damaged."""
    generator = np.random.default_rng(0)
    for index in range(12):
        wave = 0.1 * generator.standard_normal(3000 * (index + 1))
        soundfile.write(tmp_path / f"{index:02d}.wav", wave, 8000)
    (tmp_path / "05.wav").write_bytes(b"RIFF")
    return collect_inputs([tmp_path]).clips


def same(a, b):
    if isinstance(a.result, Failure):
        return a == b
    return a.clip == b.clip and np.array_equal(a.result.samples, b.result.samples)


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_this_process_gives_in_the_same_order(clips, workers):
    alone = list(read_clips(clips, 16000, workers=0))
    assert [d.clip for d in alone] == list(clips)
    assert [d.clip.name for d in alone if isinstance(d.result, Failure)] == ["05.wav"]
    many = list(read_clips(clips, 16000, workers=workers, budget_bytes=1))
    assert len(many) == len(alone)
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))


def test_no_more_is_decoded_than_the_budget_while_nobody_takes_it(clips):
    reader = read_clips(clips, 16000, workers=1, budget_bytes=50_000)
    next(reader)
    pool = reader.gi_frame.f_locals["pool"]
    deadline = time.monotonic() + 20
    while pool.waiting_bytes < 50_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # in which a worker without a limit would finish
    assert 50_000 <= pool.waiting_bytes < 50_000 + 4 * 6000 * 5
    assert len(pool.todo) > 5
    assert len(list(reader)) == len(clips) - 1


@pytest.fixture
def killed(monkeypatch):
    """Kill whichever process is given the clip of that name: ``killed("03.wav", times)``."""
    give = embed_decode._Pool._give

    def arrange(name, times):
        at_work = []

        def give_and_kill(pool, worker, index):
            if pool.clips[index].name == name and len(at_work) < times:
                at_work.append([other.task for other in pool.workers if other.task is not None])
                os.kill(worker.process.pid, signal.SIGKILL)
                worker.process.join()
            give(pool, worker, index)

        monkeypatch.setattr(embed_decode._Pool, "_give", give_and_kill)
        return at_work

    return arrange


def test_a_clip_whose_process_is_killed_once_is_read_again_alone(clips, killed):
    at_work = killed("03.wav", 1)
    found = list(read_clips(clips, 16000, workers=2))
    alone = list(read_clips(clips, 16000, workers=0))
    assert len(at_work) == 1
    assert all(same(a, b) for a, b in zip(alone, found, strict=True))


def test_a_clip_that_kills_its_process_twice_is_reported_and_the_rest_goes_on(clips, killed):
    at_work = killed("03.wav", 5)
    found = list(read_clips(clips, 16000, workers=2))
    assert len(at_work) == 2
    assert at_work[1] == [], "the second attempt had company"
    assert len(found) == len(clips)
    (crash,) = [d.result for d in found if isinstance(d.result, Failure) and d.result.reason == "crash"]
    assert crash.name == "03.wav"
    assert "died twice" in crash.detail
    assert "SIGKILL" in crash.detail
    assert sum(isinstance(d.result, Sound) for d in found) == 10


def test_processes_that_all_die_at_their_start_are_no_fault_of_the_clips(clips, monkeypatch):
    start = embed_decode._Worker.__init__

    def start_and_kill(worker, context, sample_rate):
        start(worker, context, sample_rate)
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()

    monkeypatch.setattr(embed_decode._Worker, "__init__", start_and_kill)
    with pytest.raises(WorkFailedError, match=r"ended at its start \(.*SIGKILL\).*--workers 0"):
        list(read_clips(clips, 16000, workers=2))


def test_a_caller_that_stops_early_leaves_no_process_behind(clips):
    reader = read_clips(clips, 16000, workers=2)
    next(reader)
    pool = reader.gi_frame.f_locals["pool"]
    processes = [worker.process for worker in pool.workers]
    assert len(processes) == 2
    reader.close()
    assert not any(process.is_alive() for process in processes)
    assert not pool.thread.is_alive()


@pytest.mark.parametrize("what", ["nowhere", "pipe", "forbidden"])
def test_what_cannot_be_opened_is_a_failure_with_a_reason(tmp_path, what):
    path = tmp_path / "x.wav"
    (tmp_path / "list").write_text("x.wav\n")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "forbidden":
        path.touch(mode=0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    (clip,) = collect_inputs([], tmp_path / "list").clips
    result = decode(clip, 16000).result
    assert isinstance(result, Failure)
    assert result.reason == "unreadable"
    assert result.detail
