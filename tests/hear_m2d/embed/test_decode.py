"""Decoding in threads: the order of the clips, and a reason for each that gives no sound."""

import os

import numpy as np
import pytest
import soundfile

from hear_m2d.embed.decode import decode, read_clips
from hear_m2d.embed.inputs import Failure, collect_inputs


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
def test_threads_give_the_same_sounds_in_the_same_order(clips, workers, monkeypatch):
    monkeypatch.setattr("hear_m2d.embed.decode.BUDGET_BYTES", 1)
    alone = list(read_clips(clips, 16000, workers=0))
    assert [d.clip for d in alone] == list(clips)
    assert [d.clip.name for d in alone if isinstance(d.result, Failure)] == ["05.wav"]
    many = list(read_clips(clips, 16000, workers=workers))
    assert len(many) == len(alone)
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))


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
