import csv
import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from click.testing import CliRunner

from hear_m2d.audio import read_audio, read_sound
from hear_m2d.model.frontend import FrontendConfig, LogMelSpectrogram
from hear_m2d.pretrain.cli import prepare as command
from hear_m2d.pretrain.data import prepare as module
from hear_m2d.pretrain.data.prepare import cut, prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.shards import is_silent
from hear_m2d.pretrain.data.sources import open_source
from hear_m2d.pretrain.data.sources.base import Item
from hear_m2d.utils.errors import WorkFailedError


def noise(rate, seconds, seed=0, channels=1):
    shape = (int(rate * seconds), channels)
    return 0.1 * np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def audio_dir(tmp_path):
    """Sound in several formats and rates, and one file of every kind that cannot be used."""
    folder = tmp_path / "audio"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "a.wav", noise(16000, 1.0, 1), 16000)
    soundfile.write(folder / "b.flac", noise(44100, 2.0, 2, channels=2), 44100)
    soundfile.write(folder / "deep" / "c.ogg", noise(8000, 0.5, 3), 8000)
    soundfile.write(folder / "deep" / "d.mp3", noise(44100, 1.5, 4), 44100)
    (folder / "corrupt.wav").write_bytes(b"not a sound")
    soundfile.write(folder / "cut.wav", noise(16000, 1.0), 16000)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:9000])
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "short.wav", noise(16000, 0.01), 16000)
    nan = noise(16000, 1.0)
    nan[5] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    (folder / "readme.txt").write_text("no audio")
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Two files to a shard, two clips to a batch."""
    monkeypatch.setattr(module, "_SHARD_ITEMS", (2, 2))
    monkeypatch.setattr("hear_m2d.pretrain.data.shards._BATCH_VALUES", 20_000)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def test_usable_files_are_prepared_and_the_others_counted_and_named(audio_dir, tmp_path):
    summary = prepare(audio_dir, tmp_path / "out")
    assert summary.clips == 4
    assert summary.hours == pytest.approx(5.0 / 3600, rel=1e-3)
    assert summary.skipped == {
        "corrupt": 1, "empty": 1, "non-finite": 1, "silent": 1, "too short": 1, "truncated": 1,
    }  # fmt: skip
    with summary.report.open() as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        "corrupt.wav": "corrupt", "cut.wav": "truncated", "empty.wav": "empty", "nan.wav": "non-finite",
        "short.wav": "too short", "silent.wav": "silent",
    }  # fmt: skip
    assert sorted(contents(tmp_path / "out")) == ["data.json", "shard-00000.arrow", "skipped.csv"]
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert data["source"]["files"] == 10
    assert data["lengths"] == [[51, 1], [101, 1], [151, 1], [201, 1]]
    assert data["frontend"] == vars(FrontendConfig())
    assert str(tmp_path) not in json.dumps(data)


def test_a_clip_is_the_log_mel_of_its_file_and_the_statistics_are_those_of_all_bins(audio_dir, tmp_path):
    summary = prepare(audio_dir, tmp_path / "out", sample_rate=32000)
    data = LogMelData(tmp_path / "out")
    frontend = LogMelSpectrogram(FrontendConfig.for_rate(32000))
    bins = []
    for index, name in enumerate(["a.wav", "b.flac", "deep/c.ogg", "deep/d.mp3"]):
        expected = frontend(torch.from_numpy(read_audio(audio_dir / name, 32000))[None])[0].numpy()
        assert data.logmel(index).shape == expected.shape
        np.testing.assert_allclose(data.logmel(index), expected, atol=0.005)
        bins.append(data.logmel(index).astype(np.float64).ravel())
    assert summary.mean == pytest.approx(np.concatenate(bins).mean(), abs=1e-9)
    assert summary.std == pytest.approx(np.concatenate(bins).std(), abs=1e-9)


def test_the_result_does_not_depend_on_the_workers(audio_dir, tmp_path, small_shards):
    prepare(audio_dir, tmp_path / "one", workers=1)
    # Worker processes do not see the patched batch size, so it is the content that is compared.
    prepare(audio_dir, tmp_path / "two", workers=2)
    assert sum(name.endswith(".arrow") for name in contents(tmp_path / "one")) == 5
    assert LogMelData(tmp_path / "one").summary["mean"] == LogMelData(tmp_path / "two").summary["mean"]
    one, two = LogMelData(tmp_path / "one"), LogMelData(tmp_path / "two")
    for index in range(len(one)):
        np.testing.assert_array_equal(one.logmel(index), two.logmel(index))


def test_preparing_twice_gives_the_same_bytes(audio_dir, tmp_path):
    prepare(audio_dir, tmp_path / "one")
    prepare(audio_dir, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_finished_folder_is_left_alone(audio_dir, tmp_path):
    first = prepare(audio_dir, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = prepare(audio_dir, tmp_path / "out")
    assert again.already
    assert not first.already
    assert (again.clips, again.mean, again.skipped) == (first.clips, first.mean, first.skipped)
    assert contents(tmp_path / "out") == before


def test_an_interrupted_run_is_not_a_prepared_folder_and_continues_to_the_same_bytes(
    audio_dir, tmp_path, small_shards, monkeypatch
):
    prepare(audio_dir, tmp_path / "whole")
    make, made = module.make_shard, []

    def interrupted(job):
        if job.index == 3:
            (job.out / ".hear-m2d-0.tmp").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        return make(job)

    monkeypatch.setattr(module, "make_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(audio_dir, tmp_path / "out")
    with pytest.raises(ValueError, match="half prepared"):
        LogMelData(tmp_path / "out")

    def counted(job):
        made.append(job.index)
        return make(job)

    monkeypatch.setattr(module, "make_shard", counted)
    assert not prepare(audio_dir, tmp_path / "out").already
    assert made == [3, 4]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_reported_and_loses_nothing(audio_dir, tmp_path, small_shards, monkeypatch):
    import hear_m2d.pretrain.data.shards as shards

    write = shards._write_shard

    def full(job):
        if job.index == 1:
            raise OSError(28, "No space left on device")
        return write(job)

    monkeypatch.setattr(shards, "_write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(audio_dir, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(module, "_SHARD_ITEMS", (2, 2))
    assert prepare(audio_dir, tmp_path / "out").clips == 4


def test_other_settings_or_another_source_are_refused(audio_dir, tmp_path):
    prepare(audio_dir, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"prepared with other settings: frontend is .*16000.* there, .*32000.* now"
    ):
        prepare(audio_dir, tmp_path / "out", sample_rate=32000)
    with pytest.raises(ValueError, match=r"max_clip_s is 30\.0 there, 10\.0 now"):
        prepare(audio_dir, tmp_path / "out", max_clip_s=10.0)
    soundfile.write(audio_dir / "new.wav", noise(16000, 1.0), 16000)
    with pytest.raises(ValueError, match="prepared with other settings: source is"):
        prepare(audio_dir, tmp_path / "out")


def test_a_folder_with_other_things_in_it_is_refused(audio_dir, tmp_path):
    with pytest.raises(ValueError, match=r"is not empty and has no plan\.json, but a\.wav"):
        prepare(audio_dir, audio_dir)
    with pytest.raises(ValueError, match="is a file"):
        prepare(audio_dir, audio_dir / "a.wav")


def test_no_audio_and_no_usable_audio_are_different_errors(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds no audio: .*\.flac.*\.wav"):
        prepare(tmp_path / "none", tmp_path / "out")
    soundfile.write(tmp_path / "none" / "quiet.wav", np.zeros(16000), 16000)
    with pytest.raises(ValueError, match=r"no usable audio: of 1 file.*, 1 silent .*quiet\.wav"):
        prepare(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_files_become_equal_pieces_and_silent_pieces_go(tmp_path):
    wave = noise(16000, 25.0)
    wave[16000 * 10 :] = 0
    soundfile.write(tmp_path / "long.wav", wave, 16000, subtype="FLOAT")
    prepare(tmp_path / "long.wav", tmp_path / "out", max_clip_s=6.0)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "out" / "shard-00000.arrow"))).read_all()
    assert table["start_s"].to_pylist() == [0.0, 5.0]
    assert table["frames"].to_pylist() == [501, 501]
    assert table["file"].to_pylist() == ["long.wav"] * 2


@pytest.mark.parametrize(
    ("wave", "silent"),
    [
        (np.zeros(100), True),
        (np.full(100, 0.25), True),
        (np.random.default_rng(0).integers(-2, 3, 100) / 32768, True),  # dither of 16 bits
        (np.random.default_rng(0).integers(-8, 9, 100) / 32768, False),
    ],
)
def test_a_signal_that_stays_near_a_constant_is_silence(wave, silent):
    assert is_silent(wave.astype(np.float32)) is silent


def test_an_unreadable_file_is_skipped(audio_dir, tmp_path, monkeypatch):
    import hear_m2d.pretrain.data.sources.files as files

    def refused(path, rate):
        if path.endswith("a.wav"):
            raise PermissionError(13, "Permission denied", path)
        return read_sound(path, rate)

    monkeypatch.setattr(files, "read_sound", refused)
    assert prepare(audio_dir, tmp_path / "out").skipped["unreadable"] == 1


def test_a_file_that_kills_its_reader_is_reported_as_failed_work(
    audio_dir, tmp_path, small_shards, monkeypatch
):
    def deadly(first, last):
        return (Item("deadly.wav", None, os._exit),) * (last - first)  # reading it ends the process

    source = dataclasses.replace(open_source(audio_dir), part=deadly)
    monkeypatch.setattr(module, "open_source", lambda place: source)
    message = r"makes shard \d died twice.*\(deadly\.wav to deadly\.wav\)\. The same command continues"
    with pytest.raises(WorkFailedError, match=message):
        prepare(audio_dir, tmp_path / "out", workers=2)


def test_the_number_of_shards_follows_from_the_number_of_files():
    counts = [len(list(cut(np.full(n, 1000)))) for n in (0, 1, 64, 65, 100_000, 2_000_000)]
    assert counts == [0, 1, 1, 2, 256, 1954]
    assert list(cut(np.full(130, 1000))) == [(0, 64), (64, 128), (128, 130)]


def test_a_shard_of_large_files_holds_fewer_of_them_but_at_least_one():
    gigabyte = 1 << 30
    sizes = np.array([gigabyte, gigabyte // 4, gigabyte // 4, 5, gigabyte, 7])
    assert list(cut(sizes)) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]


def test_shards_of_a_table_end_where_its_row_groups_end():
    seams = np.array([50, 100, 150, 3000])
    actual = list(cut(np.full(3200, 10), seams))
    assert actual == [(0, 100), (100, 150), (150, 1174), (1174, 2198), (2198, 3200)]


def test_the_command_says_what_was_prepared_and_where_the_report_is(audio_dir, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(command, [str(audio_dir), str(out)])
    assert done.exit_code == 0, done.output
    assert f"{out}: 4 clips, 0.00 h, mean " in done.output
    assert "1 corrupt" in done.output
    assert str(out / "skipped.csv") in done.output
    assert "already prepared" in CliRunner().invoke(command, [str(audio_dir), str(out)]).output


def test_real_recordings(data_dir, tmp_path):
    summary = prepare(data_dir / "corpus" / "ambie", tmp_path / "out")
    assert summary.skipped == {}
    assert summary.clips > 10
    assert -16 < summary.mean < 0
    assert 1 < summary.std < 8
    data = LogMelData(tmp_path / "out")
    assert all(np.isfinite(data.logmel(index)).all() for index in range(len(data)))


def test_two_names_that_are_not_utf8_stay_different(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (b"\xe8.wav", b"\xe9.wav"):
        soundfile.write(tmp_path / "x.wav", noise(16000, 0.5), 16000)
        try:
            (tmp_path / "x.wav").rename(tmp_path / "in" / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    prepare(tmp_path / "in", tmp_path / "out")
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "out" / "shard-00000.arrow"))).read_all()
    assert table["file"].to_pylist() == [r"\xe8.wav", r"\xe9.wav"]
