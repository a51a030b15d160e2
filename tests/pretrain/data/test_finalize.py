"""What is told about files that are loud, or sampled below the front end's rate."""

import csv
import json
import math

import numpy as np
import pytest
import soundfile

from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData


def write(folder, name, peak=0.1, rate=16000, seed=0):
    folder.mkdir(exist_ok=True)
    wave = np.random.default_rng(seed).uniform(-1, 1, 16000)
    wave[0] = 1
    soundfile.write(folder / name, peak * wave, rate, subtype="FLOAT")


@pytest.mark.parametrize("peak", [2e6, 1e16, 1e20])
def test_one_loud_float_file_does_not_poison_the_set(tmp_path, peak):
    write(tmp_path / "audio", "a.wav")
    write(tmp_path / "audio", "b.wav", peak)
    summary = prepare(tmp_path / "audio", tmp_path / "out")
    assert summary.skipped == {"too loud": 1}
    with summary.report.open() as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == "b.wav"
    assert row["detail"].startswith(f"a sample of {np.float32(peak):.3g}, beyond 1e+06")
    assert 0 < summary.std < 3


@pytest.mark.parametrize(("peak", "loud"), [(7.9, 0), (8.1, 1), (32767, 1), (9e5, 1)])
def test_integers_stored_as_float_are_kept_with_a_warning(tmp_path, caplog, peak, loud):
    write(tmp_path / "audio", "a.wav")
    write(tmp_path / "audio", "b.wav", peak)
    summary = prepare(tmp_path / "audio", tmp_path / "out")
    assert summary.clips == 2
    assert math.isfinite(summary.std)
    assert json.loads((tmp_path / "out" / "data.json").read_text())["loud"] == loud
    assert (
        "b.wav" in caplog.text and "integers stored as float; divide them by 32768" in caplog.text
    ) == loud


def test_audio_below_the_rate_of_the_front_end_is_counted_and_reported(tmp_path, caplog):
    for index, rate in enumerate((8000, 8000, 32000, 44100)):
        write(tmp_path / "audio", f"{index}.wav", rate=rate, seed=index)
    prepare(tmp_path / "audio", tmp_path / "out", sample_rate=32000)
    assert LogMelData(tmp_path / "out").summary["rates"] == [[8000, 2], [32000, 1], [44100, 1]]
    message = (
        "2 of 4 files have a sample rate of 8000 Hz: 29 of the 80 mel bins at 32000 Hz are empty for them"
    )
    assert [record.message for record in caplog.records] == [message]
    caplog.clear()
    prepare(tmp_path / "audio" / "2.wav", tmp_path / "other", sample_rate=32000)
    assert not caplog.records
