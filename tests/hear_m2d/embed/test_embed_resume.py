"""`hear-m2d embed` interrupted: killed, short of disk, by the keyboard; then the same command continues."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import read_audio
from hear_m2d.embed.inputs import collect_inputs
from hear_m2d.embed.run import embed_files

CHILD = """
import os, resource, sys
sys.stdout = sys.stderr = open(log, "w")
import hear_m2d.embed.embedder
exec(first)
from hear_m2d.cli import main
main(arguments)
"""


@pytest.fixture
def child(tmp_path):
    """Run the command in a process of its own, quickly: ``child(first, arguments)`` starts it.

    ``first`` is code to run before; what is printed goes to ``process.log``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hear_m2d.audio"])

    def start(arguments, first="", **values):
        log = tmp_path / "log"
        given = {"arguments": ["embed", *map(str, arguments)], "first": first, "log": str(log), **values}
        process = context.Process(target=exec, args=(CHILD, given))
        process.start()
        process.log = log
        return process

    return start


def test_what_is_done_is_not_done_again(sounds, spec, tmp_path, contents):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "out", workers=0)
    before = contents(tmp_path / "out")
    (tmp_path / "out/a/6.wav.times.npy").unlink()
    np.save(tmp_path / "out/a/4.flac.scene.npy", np.zeros(1))
    summary = embed_files(inputs, spec, tmp_path / "out", workers=0)
    assert (summary.clips, summary.already, len(summary.failures)) == (1, 10, 3)
    np.save(tmp_path / "zero.npy", np.zeros(1))
    assert contents(tmp_path / "out") == before | {"a/4.flac.scene.npy": (tmp_path / "zero.npy").read_bytes()}


def test_every_file_is_synced_once_before_it_has_its_final_name(sounds, spec, tmp_path, monkeypatch):
    """Not its folder with each file: two syncs a file took twenty times as long as the writing."""
    out = tmp_path / "out"
    synced = []
    fsync = os.fsync

    def record(handle):
        synced.append((os.fstat(handle).st_ino, len(list(out.rglob("*.npy")))))
        fsync(handle)

    monkeypatch.setattr("hear_m2d.utils.files.os.fsync", record)
    embed_files(collect_inputs([sounds]), spec, out, workers=0)
    files = list(out.rglob("*.npy"))
    assert [synced.count((path.stat().st_ino, 0)) for path in files] == [1] * len(files)
    assert len(synced) < len(files) + 10  # the rest: metadata, list of failures, folders


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_embeddings(
    sounds, spec, tmp_path, kind, monkeypatch, child, contents
):
    """A process with small batches and parts is killed a little later each time, until one gets through."""
    for index in range(30):
        soundfile.write(sounds / f"more{index:02d}.wav", read_audio(sounds / "a/6.wav", 16000), 16000)
    pq = kind == "parquet" and pytest.importorskip("pyarrow.parquet")
    out = tmp_path / ("out" if kind == "npy" else "out.parquet")
    first = (
        "hear_m2d.embed.embedder._BATCH_S = {'cpu': 3.0, 'cuda': 3.0}\n"
        "embed = hear_m2d.embed.embedder.Embedder.embed\n"
        "hear_m2d.embed.embedder.Embedder.embed = lambda *a: (pipe.send_bytes(b'batch'), embed(*a))[1]\n"
    )
    if kind == "parquet":
        first += "import hear_m2d.embed.parquet\nhear_m2d.embed.parquet._SHARD_CLIPS = (4, 4)\n"
        monkeypatch.setattr("hear_m2d.embed.parquet._SHARD_CLIPS", (4, 4))
    command = [
        sounds,
        "--model",
        spec.name,
        "--out",
        out,
        "--what",
        "both",
        "--device",
        "cpu",
        "--workers",
        0,
    ]
    kills = 0
    for batches in (1, 3, 5, 100):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = child(command, first, pipe=theirs)
        theirs.close()
        try:
            for _ in range(batches):
                ours.recv_bytes()
            process.kill()
            kills += 1
        except EOFError:  # it got through
            pass
        process.join()
    assert kills >= 3, process.log.read_text()
    assert process.exitcode == 0, process.log.read_text()
    monkeypatch.setattr("hear_m2d.embed.embedder._BATCH_S", {"cpu": 3.0, "cuda": 3.0})
    reference = tmp_path / ("whole" if kind == "npy" else "whole.parquet")
    embed_files(collect_inputs([sounds]), spec, reference, output_format=kind, workers=0)
    if kind == "npy":
        written, whole = contents(out), contents(reference)
        assert written.keys() == whole.keys()
        for path in reference.rglob("*.npy"):
            np.testing.assert_allclose(np.load(out / path.relative_to(reference)), np.load(path), atol=1e-5)
    else:
        assert len(list(out.glob("part-*.parquet"))) == 11
        assert pq.read_table(out).equals(pq.read_table(reference))
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_full_disk_is_reported_and_the_same_command_continues(
    sounds, spec, tmp_path, kind, child, contents
):
    """A limit on the size of files stands for the disk: the system refuses the same write."""
    pq = kind == "parquet" and pytest.importorskip("pyarrow.parquet")
    out = tmp_path / ("out" if kind == "npy" else "out.parquet")
    command = [sounds, "--model", spec.name, "--out", out, "--what", "both", "--workers", 0]
    limit = 40_000 if kind == "npy" else 100_000  # some clips' timestamps fit, the longest do not
    first = (
        "hear_m2d.embed.embedder._BATCH_S = {'cpu': 0.0, 'cuda': 0.0}\n"  # a batch is written whole
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    process = child(command, first)
    process.join()
    told = process.log.read_text()
    assert process.exitcode == 1, told
    last = told.splitlines()[-1]
    assert last.startswith(f"error: writing to {out} failed: File too large. Files already written are valid")
    assert "Traceback" not in told
    assert not list(tmp_path.rglob(".*.tmp"))
    if kind == "npy":
        for path in out.rglob("*.npy"):
            np.load(path)
        assert len(list(out.rglob("*.npy"))) > 3
    process = child(command)
    process.join()
    assert process.exitcode == 0, process.log.read_text()
    whole = tmp_path / ("whole" if kind == "npy" else "whole.parquet")
    embed_files(collect_inputs([sounds]), spec, whole, output_format=kind, workers=0)
    if kind == "npy":
        assert contents(out).keys() == contents(whole).keys()
        for path in whole.rglob("*.npy"):
            np.testing.assert_allclose(np.load(out / path.relative_to(whole)), np.load(path), atol=1e-5)
    else:
        assert pq.read_table(out).equals(pq.read_table(whole))


def test_ctrl_c_ends_it_at_once_and_the_same_command_continues(sounds, spec, tmp_path, child):
    arguments = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", "2"]
    command = [sys.executable, "-c", "from hear_m2d.cli import main; main()", "embed", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out/embed.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    process = child(arguments)
    process.join()
    assert len(list((tmp_path / "out").rglob("*.scene.npy"))) == 11
