"""`hear-m2d embed`: what it says, what it refuses, and its exit codes."""

import csv
import importlib.util
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.utils.files import lock_folder


@pytest.fixture
def run(run):
    """Run the command in this process: (exit code, standard output, standard error)."""
    return partial(run, "embed")


def one_line(result, code, *words):
    assert result[0] == code, result
    line = result[2].strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in result[2]
    for word in words:
        assert word in line, line


def test_another_model_or_other_options_in_the_same_folder_are_refused_with_the_values(
    sounds, spec, tmp_path, make_model, run, contents
):
    command = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    assert run(*command)[0] == 0
    before = contents(tmp_path / "out")
    one_line(
        run(*command, "--model-options", '{"output": "mean"}'),
        2,
        "options is {} there, {'output': 'mean'} now",
        "--force",
    )
    one_line(run(*command, "--dtype", "bfloat16"), 2, "'dtype': 'bfloat16'")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, make_model(seed=1))
    one_line(run(sounds, "--model", other, "--out", tmp_path / "out"), 2, "sha256 is ", " there, ")
    one_line(run(sounds / "a", "--model", spec.name, "--out", tmp_path / "out"), 2, "root is ")
    assert contents(tmp_path / "out") == before
    assert run(sounds / "a", "--model", other, "--out", tmp_path / "out", "--force", "--workers", 0)[0] == 0
    names = {name for name in contents(tmp_path / "out") if name.endswith(".npy")}
    assert names == {"0.wav.scene.npy", "0.flac.scene.npy", "2.ogg.scene.npy", "4.flac.scene.npy",
                     "6.wav.scene.npy", "8.ogg.scene.npy"}  # fmt: skip


def test_embeddings_that_no_run_wrote_are_not_overwritten(sounds, spec, tmp_path, run):
    (tmp_path / "out/a").mkdir(parents=True)
    np.save(tmp_path / "out/a/6.wav.scene.npy", np.zeros(3))
    (tmp_path / "out/notes.txt").write_text("mine")
    command = [sounds, "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    one_line(run(*command), 2, "6.wav.scene.npy exists", "--force")
    assert run(*command, "--force")[0] == 0
    assert np.load(tmp_path / "out/a/6.wav.scene.npy").size > 3
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_parquet_folder_with_files_that_no_run_wrote_is_refused(sounds, spec, tmp_path, run, pq):
    out = tmp_path / "x.parquet"
    out.write_bytes(b"mine")
    command = [sounds, "--model", spec.name, "--out", out, "--workers", 0]
    one_line(run(*command), 2, "x.parquet is a file: give a folder")
    one_line(run(*command, "--force"), 2, "x.parquet is a file")
    assert out.read_bytes() == b"mine"
    out.unlink()
    out.mkdir()
    (out / "mine.parquet").touch()
    one_line(run(*command), 2, "is not empty and has no .embed.json, but mine.parquet")
    one_line(run(*command, "--force"), 2, "is not empty and has no .embed.json, but mine.parquet")
    assert visible(out) == ["mine.parquet"]
    (out / "mine.parquet").rename(out / "notes.txt")
    one_line(run(*command), 2, "is not empty and has no .embed.json, but notes.txt")
    assert run(*command, "--force")[0] == 0
    assert visible(out) == ["notes.txt", "part-000000.parquet"]
    assert pq.read_table(out / "part-000000.parquet").num_rows == 11


def test_parquet_of_another_kind_or_of_other_files_is_refused_with_the_values(
    sounds, spec, tmp_path, run, pq
):
    out = tmp_path / "x.parquet"
    command = [sounds, "--model", spec.name, "--out", out, "--workers", 0]
    assert run(*command)[0] == 0
    one_line(run(*command, "--what", "both"), 2, "what is 'scene' there, 'both' now", "--force")
    (sounds / "new.wav").write_bytes((sounds / "a/6.wav").read_bytes())
    one_line(run(*command), 2, "clips is 14 there, 15 now")
    assert run(*command, "--what", "both", "--force")[0] == 0
    assert pq.read_table(out).num_rows == 12


def test_a_finished_parquet_folder_is_left_as_it_is(sounds, spec, tmp_path, run, contents, pq):
    command = [sounds, "--model", spec.name, "--out", tmp_path / "x.parquet", "--workers", 0]
    assert run(*command)[0] == 0
    before = contents(tmp_path)
    code, out, _ = run(*command)
    assert (code, "11 were done before" in out) == (0, True)
    assert "failed: 1 corrupt, 1 empty, 1 truncated" in out
    assert contents(tmp_path) == before


def test_two_processes_do_not_work_in_one_target(sounds, spec, tmp_path, run, pq):
    with lock_folder(tmp_path / "out"):
        one_line(
            run(sounds, "--model", spec.name, "--out", tmp_path / "out"), 2, "another process is at work in"
        )
    with lock_folder(tmp_path / "x.parquet"):
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
def test_where_nothing_can_be_embedded_the_work_has_failed(tmp_path, spec, run, name, pq):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    result = run(tmp_path / "bad.wav", "--model", spec.name, "--out", tmp_path / name, "--workers", 0)
    one_line(result, 1, "none of the 1 files could be embedded", "bad.wav, corrupt: ", "failed.csv")
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-options", '{"ouput": "mean"}'], ["unknown option 'ouput'", "Did you mean output"]),
        (["--model-options", "output=mean"], ["'output=mean' is not JSON"]),
        (["--model-options", '{"dtype": "bfloat16"}'], ["--dtype bfloat16"]),
        (["--model-options", '{"output": "middle"}'], ["output must be one of columns", "'middle'"]),
        (["--model-options", '{"layers": 7}'], ["layers must be a list", "7"]),
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
    one_line(run(tmp_path / "nowhere", "--model", spec.name, "--out", tmp_path / "o"), 2, "does not exist")
    one_line(run("--model", spec.name, "--out", tmp_path / "o"), 2, "give audio files")
    assert not (tmp_path / "o").exists()


def test_options_reach_the_model(sounds, spec, tmp_path, run):
    command = [sounds / "a/6.wav", "--model", spec.name, "--out", tmp_path / "out", "--workers", 0]
    code, *_ = run(*command, "--model-options", '{"layers": [0, -1], "output": "mean", "std": 2.5}')
    assert code == 0
    model = hear_m2d.load_model(spec.name, layers=[0, -1], output="mean", std=2.5)
    audio = torch.from_numpy(read_audio(sounds / "a/6.wav", 16000))[None]
    wanted = hear_m2d.get_scene_embeddings(audio, model)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/6.wav.scene.npy"), wanted, atol=1e-6)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(sounds, spec, tmp_path, run, pq):
    code, out, _ = run(sounds, "--model", spec.name, "--out", tmp_path / "x.parquet", "--dry-run")
    assert code == 0
    assert "14 clips" in out
    assert "parquet" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "sounds"]


def test_without_pyarrow_or_ray_the_line_to_type_is_given(sounds, spec, tmp_path, run, monkeypatch):

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
