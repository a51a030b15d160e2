"""Prepared sets that strangers made, or a disk damaged: read whole or refused; nothing else is touched."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import DATA_FILE, LogMelData

pytest.importorskip("pyarrow")
SHARD = "shard-00000.arrow"


@pytest.fixture(scope="module")
def sound_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        soundfile.write(root / "audio" / f"{index}.wav", 0.1 * rng.standard_normal(3000), 16000)
    prepare(root / "audio", root / "data", workers=0)
    return root / "data"


@pytest.fixture
def mine(sound_set, tmp_path):
    return shutil.copytree(sound_set, tmp_path / "data")


def read_all(place):
    data = LogMelData(place)
    for clip in range(len(data)):
        data.logmel(clip).copy()
        data.label(clip)
    return len(data)


@pytest.mark.parametrize("name", ["{}", "../../{name}", "shard-00000.arrow/../{name}", "", ".", "a.arrow"])
def test_a_shard_name_that_leads_elsewhere_is_refused(mine, tmp_path, name):
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    summary = json.loads((mine / DATA_FILE).read_text())
    summary["shards"][0]["file"] = name.format(victim, name=victim.name)
    (mine / DATA_FILE).write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="is not the name of a shard"):
        read_all(mine)
    assert victim.read_text() == "years of work"


@pytest.mark.parametrize("part", ["head", "tail", "anywhere"])
def test_a_damaged_shard_is_read_or_refused(mine, sound_set, part):
    whole = (sound_set / SHARD).read_bytes()
    rng = np.random.default_rng(len(part))
    low, high = {"head": (0, 2500), "tail": (len(whole) - 2500, len(whole)), "anywhere": (0, len(whole))}[
        part
    ]
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(low, high, rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        (mine / SHARD).write_bytes(damaged)
        try:
            assert read_all(mine) == 4
        except ValueError as error:
            assert SHARD in str(error)  # noqa: PT017
            refused += 1
    assert refused < 200  # most bytes are sound


def test_a_damaged_summary_is_read_or_refused(mine, sound_set):
    whole = (sound_set / DATA_FILE).read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        (mine / DATA_FILE).write_bytes(damaged)
        try:
            read_all(mine)
        except ValueError:
            refused += 1
    assert refused > 0
