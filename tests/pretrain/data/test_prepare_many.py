"""Preparing with many processes and jobs; shards that continue in another file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from hear_m2d.pretrain.cli import prepare as command
from hear_m2d.pretrain.data import prepare as module
from hear_m2d.pretrain.data.prepare import PartSummary, prepare, prepare_shard
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import lock_folder


def noise(seconds, seed):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))


@pytest.fixture
def audio_dir(tmp_path):
    """Twelve files; two to a shard with ``small_shards``."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for index in range(12):
        soundfile.write(folder / f"a{index:02d}.wav", noise(0.5 + index / 10, index), 16000)
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ITEMS", (2, 2))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def test_equal_files_all_stay(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / "audio" / name, noise(0.5, 0), 16000)
    assert prepare(tmp_path / "audio", tmp_path / "out").clips == 2


def test_jobs_of_an_array_make_the_same_folder_byte_for_byte_in_any_order(audio_dir, tmp_path, small_shards):
    prepare(audio_dir, tmp_path / "one", workers=1)
    for job in (3, 1, 4, 2):
        made = prepare_shard(audio_dir, tmp_path / "many", shard=(job, 4))
        with pytest.raises(ValueError, match="half prepared"):
            LogMelData(tmp_path / "many")
    assert made == PartSummary(shards=2, missing=0)
    made_again = prepare_shard(audio_dir, tmp_path / "many", shard=(2, 4))
    assert made_again == made
    before = {name: (tmp_path / "many" / name).stat().st_mtime_ns for name in contents(tmp_path / "many")}
    prepare(audio_dir, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    for name in contents(tmp_path / "many"):
        if name.endswith(".arrow"):
            assert (tmp_path / "many" / name).stat().st_mtime_ns == before[name]  # not made a second time
    assert prepare_shard(audio_dir, tmp_path / "many", shard=(2, 4)) == PartSummary(shards=2, missing=0)


def test_the_command_without_shard_makes_what_a_lost_job_left(audio_dir, tmp_path, small_shards):
    prepare(audio_dir, tmp_path / "one")
    assert prepare_shard(audio_dir, tmp_path / "many", shard=(1, 2)).missing == 3
    prepare(audio_dir, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_finishing_does_not_remove_what_a_job_still_writes(audio_dir, tmp_path, small_shards):
    """The finishing command is refused while a job works; a job that was killed holds nothing."""
    out = tmp_path / "out"
    prepare_shard(audio_dir, out, shard=(1, 2))
    with lock_folder(out, ".job-1-of-2.lock"):  # as the job holds it
        (out / ".hear-m2d-1.tmp").write_bytes(b"half a shard")
        with pytest.raises(InputError, match="another process is at work in"):
            prepare(audio_dir, out)
        with pytest.raises(InputError, match="another process is at work in"):
            prepare_shard(audio_dir, out, shard=(1, 2))
        assert (out / ".hear-m2d-1.tmp").exists()
    prepare(audio_dir, out)
    assert not (out / ".hear-m2d-1.tmp").exists()
    assert not list(out.glob(".job-*"))


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0)])
def test_a_part_that_there_is_not_is_refused(audio_dir, tmp_path, shard):
    with pytest.raises(ValueError, match=rf"--shard {shard[0]}/{shard[1]}: there are parts 1/{shard[1]} to"):
        prepare_shard(audio_dir, tmp_path / "out", shard=shard)


def test_a_shard_that_grows_too_large_goes_on_in_another_file(audio_dir, tmp_path, monkeypatch):
    prepare(audio_dir, tmp_path / "whole")
    limit = 30_000  # bytes: two of the clips, or one
    monkeypatch.setattr("hear_m2d.pretrain.data.shards.SHARD_BYTES", limit)
    prepare(audio_dir, tmp_path / "out")
    whole, data = LogMelData(tmp_path / "whole"), LogMelData(tmp_path / "out")
    assert [shard.file for shard in data.shards][:3] == [
        "shard-00000.arrow", "shard-00000-1.arrow", "shard-00000-2.arrow",
    ]  # fmt: skip
    assert all(shard.clips == 1 or shard.bytes < limit + 4000 for shard in data.shards)
    assert sum(shard.clips for shard in data.shards) == 12
    assert len(data) == len(whole)
    for index in range(len(data)):
        np.testing.assert_array_equal(data.logmel(index), whole.logmel(index))
    assert (data.mean, data.std) == (whole.mean, whole.std)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no list of processes here")
def test_workers_end_with_a_command_that_is_killed_and_the_next_one_finishes(audio_dir, tmp_path):
    program = (
        "import sys\n"
        "from hear_m2d.pretrain.data import prepare as module\n"
        "if __name__ == '__main__':\n"
        "    module._SHARD_ITEMS = (1, 1)\n"
        "    module.prepare(sys.argv[1], sys.argv[2], workers=2)\n"
    )
    (tmp_path / "run.py").write_text(program)
    for index in range(3):
        soundfile.write(audio_dir / f"z{index}.wav", noise(120, 100 + index), 16000)
    command = [sys.executable, tmp_path / "run.py", audio_dir, tmp_path / "out"]
    running = subprocess.Popen(command, start_new_session=True)
    try:
        while not list((tmp_path / "out").glob("shard-*.json")):
            assert running.poll() is None
            time.sleep(0.05)
    finally:
        running.kill()
        running.wait()
    deadline = time.monotonic() + 60
    while (left := processes_of(running.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(int(process), signal.SIGKILL)
    assert not left
    assert not (tmp_path / "out" / "data.json").exists()
    subprocess.run(command, check=True)
    assert len(LogMelData(tmp_path / "out")) == 12 + 3 * 4


def processes_of(group):
    """The processes of a group that run, but for those that ended and nobody has asked after."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            running.append(path.parent.name)
    return running


def test_the_plan_does_not_grow_with_the_names(tmp_path, monkeypatch):
    sizes = {}
    for count in (5, 50):
        folder = tmp_path / f"audio{count}"
        folder.mkdir()
        for index in range(count):
            (folder / f"a-long-name-{index:040d}.wav").write_bytes(b"x")
        sizes[count] = len(json.dumps(module.list_work(folder, tmp_path / "out", sample_rate=16000,
                                                       max_clip_s=30.0).plan))  # fmt: skip
    assert abs(sizes[50] - sizes[5]) < 10


def test_the_command_does_a_part_and_says_what_is_missing(audio_dir, tmp_path, small_shards):
    out = tmp_path / "out"
    run = CliRunner()
    done = run.invoke(command, [str(audio_dir), str(out), "--shard", "1/2"])
    assert done.exit_code == 0, done.output
    assert "part 1/2: 3 shards are complete; 3 of the whole set are missing" in done.output
    done = run.invoke(command, [str(audio_dir), str(out), "--shard", "2/2"])
    assert "type the command without --shard" in done.output
    done = run.invoke(command, [str(audio_dir), str(out)])
    assert f"{out}: 12 clips" in done.output
    for wrong in ("2", "a/b", "1/2/3"):
        assert run.invoke(command, [str(audio_dir), str(out), "--shard", wrong]).exit_code == 2


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(audio_dir, tmp_path, small_shards):
    out = tmp_path / "out"
    done = CliRunner().invoke(command, [str(audio_dir), str(out), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "folder audio: 12 files" in done.output
    assert "6 shards, 6 to be made" in done.output
    assert not out.exists()
