"""`hear-m2d embed`: the same result however it comes about; interrupted, short of disk, asked wrongly."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.checkpoint import save_checkpoint
from hear_m2d.cli import main
from hear_m2d.embed import embed_files
from hear_m2d.embed_inputs import collect_inputs
from hear_m2d.embed_model import Embedder, ModelSpec

pq = pytest.importorskip("pyarrow.parquet")

CHILD = """
import os, resource, sys
sys.stdout = sys.stderr = open(log, "w")
import hear_m2d.embed_model, hear_m2d.embed_parquet
exec(first)
from hear_m2d.cli import main
main(arguments)
"""
COMMAND = [sys.executable, "-c", "from hear_m2d.cli import main; main()", "embed"]


@pytest.fixture
def sounds(tmp_path):
    """Ten clips: formats, rates, channels, lengths below and above a window; and three that are no sound."""
    folder = tmp_path / "sounds"
    generator = np.random.default_rng(0)
    for index in range(10):
        rate, channels = [16000, 22050, 8000][index % 3], [1, 2, 4][index % 3]
        wave = 0.1 * generator.standard_normal((int(rate * (0.02 + 0.3 * index)), channels))
        path = folder / f"{'ab'[index % 2]}/{index}.{['wav', 'flac', 'ogg'][index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate)
    soundfile.write(folder / "a/0.flac", 0.1 * generator.standard_normal(16000), 16000)  # beside a/0.wav
    (folder / "a/bad.wav").write_bytes(b"no sound")
    (folder / "b/empty.mp3").touch()
    whole = (folder / "a/6.wav").read_bytes()
    (folder / "b/cut.wav").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def spec(checkpoint_path):
    return ModelSpec(str(checkpoint_path), what="both", device="cpu")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.delenv("HEAR_M2D_TRACEBACK", raising=False)

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["embed", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return command


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


def contents(folder):
    """Every file of a result but the lock: its relative name and bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def one_line(result, code, *words):
    assert result[0] == code, result
    line = result[2].strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in result[2]
    for word in words:
        assert word in line, line


def test_npy_files_hold_what_the_three_functions_return(sounds, spec, tmp_path):
    summary = embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    assert (summary.clips, summary.already, summary.many_channels) == (11, 0, 3)
    assert summary.reasons == {"corrupt": 1, "empty": 1, "truncated": 1}
    model = hear_m2d.load_model(spec.name)
    seconds = 0.0
    for path in sorted(sounds.rglob("*.*")):
        place = tmp_path / "out" / path.relative_to(sounds)
        files = [place.with_name(f"{path.name}.{kind}.npy") for kind in ("scene", "timestamps", "times")]
        if path.stem in ("bad", "empty", "cut"):
            assert not any(file.exists() for file in files)
            continue
        audio = torch.from_numpy(read_audio(path, model.sample_rate))[None]
        seconds += audio.shape[1] / model.sample_rate
        scene, frames, times = map(np.load, files)
        wanted = hear_m2d.get_timestamp_embeddings(audio, model)
        np.testing.assert_allclose(scene, hear_m2d.get_scene_embeddings(audio, model)[0], atol=1e-5)
        np.testing.assert_allclose(frames, wanted[0][0], atol=1e-5)
        np.testing.assert_array_equal(times, wanted[1][0])
        assert scene.dtype == frames.dtype == times.dtype == np.float32
    assert summary.audio_s == pytest.approx(seconds)


def test_parquet_holds_what_the_npy_files_hold_in_the_order_of_the_names(sounds, spec, tmp_path):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "npy", workers=0)
    embed_files(inputs, spec, tmp_path / "x.parquet", output_format="parquet", workers=0)
    table = pq.read_table(tmp_path / "x.parquet")
    rows = table.to_pylist()
    good = [clip.name for clip in inputs.clips if not clip.name.endswith(("bad.wav", "empty.mp3", "cut.wav"))]
    assert [row["path"] for row in rows] == good == sorted(good)
    for row in rows:
        for column, kind in (("scene", "scene"), ("timestamps", "timestamps"), ("times_ms", "times")):
            there = np.load(tmp_path / "npy" / f"{row['path']}.{kind}.npy")
            np.testing.assert_array_equal(np.float32(row[column]), there)
        info = soundfile.info(sounds / row["path"])
        assert row["sample_rate"] == info.samplerate
        assert row["duration_s"] == pytest.approx(info.duration, abs=1e-3)
    size = hear_m2d.load_model(spec.name).scene_embedding_size
    assert table.schema.field("scene").type.list_size == size
    facts = json.loads(table.schema.metadata[b"hear_m2d"])
    assert facts["sha256"] == Embedder(spec).facts()["sha256"]
    assert (facts["model"], facts["options"], facts["root"]) == (spec.name, {}, str(sounds))
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("what", ["scene", "timestamps"])
def test_only_what_is_asked_for_is_written(sounds, checkpoint_path, tmp_path, what):
    spec = ModelSpec(str(checkpoint_path), what=what, device="cpu")
    embed_files(collect_inputs([sounds / "a"]), spec, tmp_path / "out", workers=0)
    kinds = {path.name.split(".")[-2] for path in (tmp_path / "out").glob("*.npy")}
    assert kinds == ({"scene"} if what == "scene" else {"timestamps", "times"})
    embed_files(
        collect_inputs([sounds / "a"]), spec, tmp_path / "x.parquet", output_format="parquet", workers=0
    )
    columns = set(pq.read_schema(tmp_path / "x.parquet").names) - {"path", "duration_s", "sample_rate"}
    assert columns == ({"scene"} if what == "scene" else {"timestamps", "times_ms"})


def test_worker_processes_change_nothing(sounds, spec, tmp_path):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "alone", workers=0)
    summary = embed_files(inputs, spec, tmp_path / "helped", workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "helped")
    assert 0 < summary.waiting_share < 1


def test_an_embedding_does_not_depend_on_its_batch(sounds, spec, tmp_path, monkeypatch):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "together", workers=0)
    monkeypatch.setattr("hear_m2d.embed_model._BATCH_S", {"cpu": 0.0, "cuda": 0.0})
    embed_files(inputs, spec, tmp_path / "alone", workers=0)
    for path in (tmp_path / "together").rglob("*.npy"):
        there = np.load(tmp_path / "alone" / path.relative_to(tmp_path / "together"))
        np.testing.assert_allclose(np.load(path), there, atol=1e-5)


def test_statistics_of_the_batch_are_those_of_the_clip(sounds, checkpoint_path, tmp_path):
    spec = ModelSpec(str(checkpoint_path), options={"normalization": "batch"}, device="cpu")
    embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    model = hear_m2d.load_model(spec.name, normalization="batch")
    audio = torch.from_numpy(read_audio(sounds / "a/6.wav", 16000))[None]
    wanted = hear_m2d.get_scene_embeddings(audio, model)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/a/6.wav.scene.npy"), wanted, atol=1e-6)


def test_what_is_done_is_not_done_again(sounds, spec, tmp_path):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "out", workers=0)
    before = contents(tmp_path / "out")
    (tmp_path / "out/a/6.wav.times.npy").unlink()
    np.save(tmp_path / "out/a/4.flac.scene.npy", np.zeros(1))
    summary = embed_files(inputs, spec, tmp_path / "out", workers=0)
    assert (summary.clips, summary.already, len(summary.failures)) == (1, 10, 3)
    np.save(tmp_path / "zero.npy", np.zeros(1))
    assert contents(tmp_path / "out") == before | {"a/4.flac.scene.npy": (tmp_path / "zero.npy").read_bytes()}


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    sounds, spec, tmp_path, kind, monkeypatch, child
):
    """A process with small batches and parts is killed a little later each time, until one gets through."""
    for index in range(30):
        soundfile.write(sounds / f"more{index:02d}.wav", read_audio(sounds / "a/6.wav", 16000), 16000)
    out = tmp_path / ("out" if kind == "npy" else "out.parquet")
    first = (
        "hear_m2d.embed_model._BATCH_S = {'cpu': 3.0, 'cuda': 3.0}\n"
        "hear_m2d.embed_parquet._PART_CLIPS = 4\n"
        "embed = hear_m2d.embed_model.Embedder.embed\n"
        "hear_m2d.embed_model.Embedder.embed = lambda *a: (pipe.send_bytes(b'batch'), embed(*a))[1]\n"
    )
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
    monkeypatch.setattr("hear_m2d.embed_model._BATCH_S", {"cpu": 3.0, "cuda": 3.0})
    reference = tmp_path / ("whole" if kind == "npy" else "whole.parquet")
    embed_files(collect_inputs([sounds]), spec, reference, output_format=kind, workers=0)
    if kind == "npy":
        assert contents(out) == contents(reference)
    else:
        assert pq.read_table(out).equals(pq.read_table(reference))
        names = sorted(path.name for path in tmp_path.iterdir() if path.name.endswith((".parts", ".tmp")))
        assert names == []


def test_another_model_or_other_options_in_the_same_folder_are_refused_with_the_values(
    sounds, spec, tmp_path, make_model, run
):
    command = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    assert run(*command)[0] == 0
    before = contents(tmp_path / "out")
    one_line(
        run(*command, "--option", "output=mean"), 2, "options: there {}, asked {'output': 'mean'}", "--force"
    )
    one_line(run(*command, "--dtype", "bfloat16"), 2, "'dtype': 'bfloat16'")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, make_model(seed=1))
    one_line(run(sounds, "--model", other, "--out", tmp_path / "out"), 2, "sha256: there ", "asked ")
    one_line(run(sounds / "a", "--model", spec.name, "--out", tmp_path / "out"), 2, "root: there ")
    assert contents(tmp_path / "out") == before
    assert run(sounds / "a", "--model", other, "--out", tmp_path / "out", "--force", "--workers", 0)[0] == 0
    names = {name for name in contents(tmp_path / "out") if name.endswith(".npy")}
    assert names == {"0.wav.scene.npy", "0.flac.scene.npy", "2.ogg.scene.npy", "4.flac.scene.npy",
                     "6.wav.scene.npy", "8.ogg.scene.npy"}  # fmt: skip


def test_embeddings_that_nobody_vouches_for_are_not_taken_for_ours(sounds, spec, tmp_path, run):
    (tmp_path / "out/a").mkdir(parents=True)
    np.save(tmp_path / "out/a/6.wav.scene.npy", np.zeros(3))
    (tmp_path / "out/notes.txt").write_text("mine")
    command = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    one_line(run(*command), 2, "6.wav.scene.npy is there", "--force")
    assert run(*command, "--force")[0] == 0
    assert np.load(tmp_path / "out/a/6.wav.scene.npy").size > 3
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_parquet_target_that_exists_is_refused_unless_forced(sounds, spec, tmp_path, run):
    out = tmp_path / "x.parquet"
    out.write_bytes(b"mine")
    command = [sounds, "--model", spec.name, "--out", out, "--workers", 0]
    one_line(run(*command), 2, "x.parquet is there already", "--force")
    assert out.read_bytes() == b"mine"
    assert list(tmp_path.glob(".*")) == []
    assert run(*command, "--force")[0] == 0
    assert pq.read_table(out).num_rows == 11


def test_unfinished_parquet_of_another_kind_is_refused_with_the_values(sounds, spec, tmp_path, run):
    parts = tmp_path / ".x.parquet.parts"
    parts.mkdir()
    (parts / "embed.json").write_text(
        json.dumps(Embedder(spec).facts() | {"root": str(sounds), "what": "both"})
    )
    command = [sounds, "--model", spec.name, "--out", tmp_path / "x.parquet", "--workers", 0]
    one_line(run(*command), 2, "unfinished work that differs (what: there both, asked scene)")
    assert run(*command, "--what", "both")[0] == 0


def test_two_processes_do_not_work_in_one_target(sounds, spec, tmp_path, run):
    from hear_m2d.files import hold_folder

    with hold_folder(tmp_path / "out"):
        one_line(
            run(sounds, "--model", spec.name, "--out", tmp_path / "out"), 2, "another process is at work in"
        )
    with hold_folder(tmp_path / ".x.parquet.parts"):
        result = run(sounds, "--model", spec.name, "--out", tmp_path / "x.parquet")
        one_line(result, 2, "another process is at work in")


def test_failures_are_listed_with_their_reasons_and_forgotten_when_mended(
    sounds, spec, tmp_path, run, caplog
):
    caplog.set_level("INFO")
    command = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    code, out, _ = run(*command)
    assert code == 0
    assert "failed: 1 corrupt, 1 empty, 1 truncated; listed in" in out
    assert "3 files with more than two channels were averaged" in out
    assert "waited for data" in out
    assert caplog.text.count("has 4 channels: they are averaged") == 1
    with (tmp_path / "out/failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["reason"]) for row in rows] == [
        ("a/bad.wav", "corrupt"), ("b/cut.wav", "truncated"), ("b/empty.mp3", "empty"),
    ]  # fmt: skip
    assert all(row["detail"] for row in rows)
    for name in ("a/bad.wav", "b/cut.wav", "b/empty.mp3"):
        (sounds / name).write_bytes((sounds / "a/6.wav").read_bytes())
    code, out, _ = run(*command)
    assert (code, "3 clips" in out, "11 were done before" in out) == (0, True, True)
    assert not (tmp_path / "out/failed.csv").exists()


@pytest.mark.parametrize("name", ["out", "x.parquet"])
def test_where_nothing_can_be_embedded_the_work_has_failed(tmp_path, spec, run, name):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    result = run(tmp_path / "bad.wav", "--model", spec.name, "--out", tmp_path / name, "--workers", 0)
    one_line(result, 1, "none of the 1 files could be embedded", "bad.wav, corrupt: ", "failed.csv")
    assert not (tmp_path / "x.parquet").exists()


def test_samples_so_loud_that_the_embedding_is_not_finite_are_a_failure(tmp_path, spec):
    soundfile.write(tmp_path / "loud.wav", np.tile([3e38, -3e38], 8000), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", np.full(16000, 0.1), 16000)
    summary = embed_files(collect_inputs([tmp_path]), spec, tmp_path / "out", workers=0)
    assert [(f.name, f.reason) for f in summary.failures] == [("loud.wav", "not embedded")]
    assert summary.clips == 1


def test_a_name_that_is_too_long_for_its_embeddings_is_a_failure_of_that_clip(sounds, spec, tmp_path):
    long = sounds / ("x" * 245 + ".wav")
    long.write_bytes((sounds / "a/6.wav").read_bytes())
    summary = embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    assert summary.reasons["not written"] == 1
    assert summary.clips == 11


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_disk_that_fills_is_told_and_the_same_command_continues(sounds, spec, tmp_path, kind, child):
    """A limit on the size of files stands for the disk: the system refuses the same write."""
    out = tmp_path / ("out" if kind == "npy" else "out.parquet")
    command = [sounds, "--model", spec.name, "--out", out, "--what", "both", "--workers", 0]
    limit = 40_000 if kind == "npy" else 100_000  # some clips' timestamps fit, the longest do not
    process = child(command, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    process.join()
    told = process.log.read_text()
    assert process.exitcode == 1, told
    last = told.splitlines()[-1]
    assert last.startswith(f"error: writing to {out} failed: File too large. What is written stays valid")
    assert "Traceback" not in told
    assert not list(tmp_path.rglob(".*.npy.*.tmp"))
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
        assert sum(contents(out)[name] != data for name, data in contents(whole).items()) == 0
    else:
        assert pq.read_table(out).equals(pq.read_table(whole))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--option", "ouput=mean"], ["unknown option 'ouput'", "Did you mean output"]),
        (["--option", "output"], ["give NAME=VALUE"]),
        (["--option", "output=mean", "--option", "output=mean"], ["given twice"]),
        (["--option", "dtype=bfloat16"], ["--dtype bfloat16"]),
        (["--option", "output=middle"], ["output='middle'", "columns"]),
        (["--option", "layers=7"], ["layers=7", "list"]),
        (["--what", "scenes"], ["scenes", "scene"]),
        (["--device", "tpu"], ["tpu"]),
        (["--list", "nowhere.txt"], ["nowhere.txt"]),
        (["--format", "npy", "--ray", "local"], ["--ray writes Parquet"]),
    ],
)
def test_a_wrong_argument_is_one_line(sounds, spec, tmp_path, run, arguments, words):
    one_line(run(sounds, "--model", spec.name, "--out", tmp_path / "out", *arguments), 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_or_input_is_one_line(sounds, spec, tmp_path, run):
    one_line(run(sounds, "--model", tmp_path / "nowhere.safetensors", "--out", tmp_path / "o"), 2, "nowhere")
    one_line(run(tmp_path / "nowhere", "--model", spec.name, "--out", tmp_path / "o"), 2, "there is no")
    one_line(run("--model", spec.name, "--out", tmp_path / "o"), 2, "give audio files")
    assert not (tmp_path / "o").exists()


def test_options_reach_the_model_and_numbers_are_numbers(sounds, spec, tmp_path, run):
    command = [sounds / "a/6.wav", "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    code, *_ = run(*command, "--option", "layers=[0,-1]", "--option", "output=mean", "--option", "std=2.5")
    assert code == 0
    model = hear_m2d.load_model(spec.name, layers=[0, -1], output="mean", std=2.5)
    audio = torch.from_numpy(read_audio(sounds / "a/6.wav", 16000))[None]
    wanted = hear_m2d.get_scene_embeddings(audio, model)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/6.wav.scene.npy"), wanted, atol=1e-6)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(sounds, spec, tmp_path, run):
    code, out, _ = run(sounds, "--model", spec.name, "--out", tmp_path / "x.parquet", "--dry-run")
    assert code == 0
    assert "14 clips" in out
    assert "parquet" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "sounds"]


def test_without_pyarrow_or_ray_the_line_to_type_is_given(sounds, spec, tmp_path, run, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    missing = ("pyarrow", "ray")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a)
    )
    command = [sounds, "--model", spec.name, "--out"]
    one_line(run(*command, tmp_path / "x.parquet"), 2, "pip install 'hear-m2d[parquet]'")
    one_line(run(*command, tmp_path / "x", "--ray", "auto"), 2, "pip install 'hear-m2d[ray]'")


def test_ray_and_pyarrow_are_not_imported_unless_asked_for(sounds, spec, tmp_path):
    code = (
        "import sys\nfrom hear_m2d.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'ray', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "embed", sounds, "--model", spec.name, "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_interrupted_by_the_keyboard_it_ends_at_once_and_continues(sounds, spec, tmp_path, child):
    command = [*COMMAND, sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out/embed.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    process = child(command[len(COMMAND) :])
    process.join()
    assert len(list((tmp_path / "out").rglob("*.scene.npy"))) == 11
