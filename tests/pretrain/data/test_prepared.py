"""Opened sets: checksums, values that are not finite, sets of an earlier version, labels."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from hear_m2d.pretrain.data.crops import Crops, MixedCrops
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import DATA_FILE, LogMelData
from hear_m2d.pretrain.data.sampling import StepBatches
from hear_m2d.pretrain.data.shards import file_crc32
from hear_m2d.utils.errors import InputError

SHARD = "shard-00000.arrow"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "audio" / f"{index}.wav", 0.1 * rng.standard_normal(9000), 16000)
    prepare(tmp_path / "audio", tmp_path / "data")
    return tmp_path / "data"


def edit(folder, change):
    summary = json.loads((folder / DATA_FILE).read_text())
    change(summary)
    (folder / DATA_FILE).write_text(json.dumps(summary))


def put(folder, clip, value):
    """Overwrite the first value of a clip's log-mel on disk, as a damaged disk would."""
    data = (folder / SHARD).read_bytes()
    old = LogMelData(folder).logmel(clip).T.tobytes()
    assert data.count(old) == 1
    (folder / SHARD).write_bytes(data.replace(old, np.float16(value).tobytes() + old[2:]))


def test_flipped_bytes_inside_a_shard_are_found(folder):
    assert LogMelData(folder).verify() == (folder / SHARD).stat().st_size
    put(folder, 1, 5.0)
    with pytest.raises(
        InputError, match=rf"{SHARD} is damaged: its checksum is \w{{8}}, data\.json says \w{{8}}"
    ):
        LogMelData(folder).verify()


def test_a_set_without_checksums_still_opens(folder):
    edit(folder, lambda summary: [shard.pop("crc32") for shard in summary["shards"]])
    data = LogMelData(folder)
    assert data.verify() == 0
    assert len(data) == 4


def test_a_set_of_the_first_version_opens_without_its_duplicates(folder):
    """It has a column more, no checksums, and ranges of clips to drop."""
    table = pa.ipc.open_file(folder / SHARD).read_all()
    table = table.add_column(2, "digest", pa.array([bytes(16)] * 4, pa.binary(16)))
    with pa.ipc.new_file(folder / SHARD, table.schema) as writer:
        writer.write_table(table)
    line = {"file": SHARD, "clips": 4, "bytes": (folder / SHARD).stat().st_size, "dropped": [[1, 3]]}
    edit(folder, lambda summary: summary.update(shards=[line], clips=2))
    data = LogMelData(folder)
    assert [data.origin(index)[0] for index in range(len(data))] == ["0.wav", "3.wav"]
    assert "clip 3 of" in data.describe_clip(1)


def test_values_that_are_not_finite_are_named_with_shard_and_clip(folder, tmp_path):
    steps = StepBatches(0, 2, batch_size=2, n_clips=4, seed=0)
    assert Crops(LogMelData(folder), frames=20).find_non_finite(steps) == ""
    put(folder, 2, np.inf)
    where = rf"clip 2 of {folder / SHARD} (from 2.wav, at 0 s)"
    data = LogMelData(folder)
    assert Crops(data, frames=20).find_non_finite(steps) == where
    put(folder, 2, 0)
    noisy = MixedCrops(Crops(LogMelData(folder), frames=20), data, ratio=0.5)
    assert noisy.find_non_finite(StepBatches(0, 20, batch_size=2, n_clips=4, seed=0)) in ("", where)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_set_whose_statistics_are_not_finite_is_refused(folder, field):
    edit(folder, lambda summary: summary.update({field: float("nan")}))
    with pytest.raises(InputError, match=r"has mean .* and standard deviation .*far too large samples"):
        LogMelData(folder)


def test_a_label_that_the_set_does_not_list_is_named(folder, tmp_path):
    (tmp_path / "audio" / "list.csv").write_text('file,label\n0.wav,"dog,cat"\n')
    prepare(tmp_path / "audio" / "list.csv", tmp_path / "labeled")
    edit(tmp_path / "labeled", lambda summary: summary.update(labels=["cat"]))
    with pytest.raises(InputError, match=r"clip 0 of .* has the label 'dog', which data\.json does not list"):
        LogMelData(tmp_path / "labeled").multi_hot(0)


def test_labels_with_commas_and_in_two_unicode_forms(folder, tmp_path):
    rows = [
        "file,label",
        '0.wav,"""Male speech, man speaking"",gro\u0308\u00df"',
        "1.wav,gr\u00f6\u00df",
        "2.wav,",
    ]
    (tmp_path / "audio" / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    prepare(tmp_path / "audio" / "list.csv", tmp_path / "labeled")
    data = LogMelData(tmp_path / "labeled")
    assert data.labels == ("Male speech, man speaking", "gr\u00f6\u00df")
    assert [data.multi_hot(index).tolist() for index in range(3)] == [[1, 1], [0, 1], [0, 0]]


def test_the_checksum_of_a_file_is_its_crc32(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789")
    assert file_crc32(tmp_path / "a") == "cbf43926"  # the published check value


def test_a_run_tells_damaged_data_from_divergence(folder, tmp_path):
    """With --no-verify they are found when the loss is not finite, otherwise at the start."""
    put(folder, 1, np.nan)
    words = ["pretrain", "--recipe", "demo_m2d", "--data", str(folder), "--steps", "2", "--batch-size", "4"]
    for more, code, message in [
        (["--no-verify"], 1, rf"clip 1 of {folder / SHARD} .*has values that are not finite"),
        (["--verify"], 2, rf"{SHARD} is damaged: its checksum is"),
    ]:
        command = [sys.executable, "-m", "hear_m2d.cli", *words, "--out", str(tmp_path / "run"), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert re.search(message, done.stderr)
