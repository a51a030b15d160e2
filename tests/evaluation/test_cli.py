import io
import json
import re
import tarfile
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from hear_m2d.cli import cli, main

pytestmark = pytest.mark.harness


def code_of(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert isinstance(end.value.code, int)
    return end.value.code


def evaluate_in(folder: Path, *args: str) -> int:
    """Return the exit code of `evaluate` on the tiny module: tasks in folder/tasks, results in folder/out."""
    start = ["evaluate", "--module", "tiny_hear_module", "--tasks-dir", str(folder / "tasks")]
    return code_of(*start, "--out", str(folder / "out"), *args)


def test_validate_passes_a_good_model_with_the_standing_note_only(
    our_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert code_of("validate", "--model", str(our_checkpoint), "--device", "cpu") == 0
    assert "Looks good!" in capfd.readouterr().out
    assert len(caught) == 1, [str(warning.message) for warning in caught]
    assert "rounding errors accumulating" in str(caught[0].message)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("fault", "message"), [("size", "ModelError|embedding size is 64"), ("raise", "always fails")]
)
def test_validate_ends_with_1_where_the_validator_refuses(
    fault: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = json.dumps({"fault": fault})
    assert code_of("validate", "--module", "tiny_hear_module", "--model-options", options) == 1
    line = capfd.readouterr().err.strip().split("\n")[-1]
    assert line.startswith("error: the validator refused tiny_hear_module: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--module", "tiny_hear_module", "--model", "absent.ckpt"], "no checkpoint at absent.ckpt"),
        (
            ["--module", "tiny_hear_module", "--model-options", '{"fault": "load"}'],
            "could not be loaded: no such fault",
        ),
        (["--module", "no_such_module"], "No module named 'no_such_module'"),
        (["--model-options", "{"], "'{' is not JSON"),
        (["--model-options", "[1]"], "not a JSON object"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--device", "cuda"], "device 'cuda' cannot be used here"),
        (
            ["--module", "tiny_hear_module", "--model-options", '{"fault": "load at run time"}'],
            "tiny_hear_module could not be loaded: RuntimeError: no weights fit",
        ),
        (["--module", "breaks_at_import"], "breaks_at_import could not be loaded: RuntimeError: not today"),
        (
            ["--module", "breaks_at_import", "--model-options", '{"fault": ""}'],
            "breaks_at_import could not be loaded: RuntimeError: not today",
        ),
    ],
)
def test_validate_ends_with_2_and_one_line_where_the_input_is_bad(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("breaks_at_import.py").write_text("raise RuntimeError('not today')")
    assert code_of("validate", *args) == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("command", ["validate", "evaluate"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf://lab/birds", "error: hf://lab/birds: Cannot reach "),
        ("absent.safetensors", "error: no checkpoint absent.safetensors: there is no such file."),
        ("m2d-bird", "error: no checkpoint m2d-bird: there is no such file."),
    ],
)
def test_a_missing_model_of_this_package_gives_the_error_of_load_model(
    command: str,
    model: str,
    message: str,
    tiny_tasks: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    folders = [] if command == "validate" else ["--tasks-dir", "tasks", "--out", "out"]
    assert code_of(command, "--model", model, *folders) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_validate_takes_an_address(our_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert code_of("validate", "--model", our_checkpoint.as_uri(), "--device", "cpu") == 0
    assert "Looks good!" in capfd.readouterr().out


def test_evaluate_prints_a_table_writes_results_and_ends_with_0(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks")
    assert evaluate_in(tmp_path, "--grid", "faster", "--grid-points", "2", "--device", "cpu") == 0
    printed = capfd.readouterr()
    assert re.search(r"tones-v1\.0-full +top1_acc +[01]\.\d{4} ", printed.out)
    assert "tones-v1.0-full: prediction, grid point 2 of 2" in printed.err
    assert "NOT THE PUBLISHED GRID: `faster` with 2 points" in printed.out
    assert json.loads((tmp_path / "out/results.json").read_text())["harness"]["grid_points"] == 2


def test_a_dry_run_prints_what_would_be_done_and_writes_nothing(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    wanted = ["--download", "--task", "tones-v1.0-full", "--task", "esc50"]
    assert evaluate_in(tmp_path, "--dry-run", "--jobs", "2", *wanted) == 0
    printed = capfd.readouterr().out
    assert re.search(r"tones-v1\.0-full +embed, predict +0\.00 GB +1\.50 GB", printed)
    assert re.search(r"esc50-v2\.0\.0-full +download, resample, embed, predict +1\.", printed)
    assert "2 at once on cpu, threads of each: 1; 1." in printed
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["tones-v1.0-full"]


@pytest.mark.slow
def test_missing_tasks_are_downloaded_and_resampled(
    tiny_tasks: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name = "beijing_opera-v1.0-hear2021-full"
    made = tiny_tasks.scene_multiclass(tmp_path / "record")
    (made / "16000").rename(made / "48000")
    for file in (made / "48000").rglob("*.wav"):
        data, _ = soundfile.read(file)
        soundfile.write(file, np.repeat(data, 3), 48000)
    with tarfile.open(tmp_path / f"record/hear2021-{name}-48000.tar.gz", "w:gz") as archive:
        archive.add(made, f"tasks/{name}")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "record"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    args = ["--grid", "faster", "--grid-points", "1", "--download", "--task", "Beijing Opera"]
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert evaluate_in(tmp_path, *args, "--base-url", address) == 0
    finally:
        server.shutdown()
    assert re.search(rf"{name} +top1_acc +[01]\.\d{{4}} ", capfd.readouterr().out)
    assert len(list((tmp_path / f"tasks/{name}/16000").rglob("*.wav"))) == 48


def test_evaluate_ends_with_1_where_a_task_fails(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    assert evaluate_in(tmp_path, "--model-options", '{"fault": "raise"}') == 1
    printed = capfd.readouterr()
    assert "RuntimeError: this model always fails" in printed.err
    assert printed.err.strip().split("\n")[-1].startswith("error: no score for tones-v1.0-full")
    assert re.search(r"tones-v1\.0-full +top1_acc +– .*failed", printed.out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "tonnes-v1.0-full"], "Did you mean tones-v1.0-full"),
        (["--grid", "default2"], "unknown grid 'default2'"),
        (["--model", "absent.safetensors"], "there is no checkpoint at absent.safetensors"),
        (["--model-options", '{"a":'], "is not JSON"),
        (["--tasks-dir", "absent"], "there is no folder of tasks at absent"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--device", "cuda"], "the device cuda cannot be used: torch sees no GPU"),
        (["--jobs", "0"], "the number of jobs must be at least 1"),
        (["--download"], "with --download, name the tasks"),
        (["--download", "--task", "esc5"], "Did you mean ESC-50"),
        (["--base-url", "http://127.0.0.1"], "give --download too"),
        (["--ray", "nope", "--dry-run"], "--ray nope is not an address: give auto, local or HOST:PORT"),
        (
            ["--model-options", '{"fault": "load at run time"}'],
            "could not be loaded: RuntimeError: no weights",
        ),
        (["--out", __file__], f"{__file__} is a file: give a folder as --out"),
        (["--out", f"{__file__}/out"], "Not a directory"),
    ],
)
def test_evaluate_ends_with_2_and_one_line_where_the_input_is_bad(
    args: list[str], message: str, tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    assert evaluate_in(tmp_path, *args) == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("die at load", "ended with exit code 7: malloc: the last words"),
        ("killed at load", "was ended by SIGKILL (probably out of memory): no output"),
    ],
)
def test_a_model_whose_process_dies_while_it_is_loaded_ends_with_1_and_one_line(
    fault: str, how: str, tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    assert evaluate_in(tmp_path, "--model-options", json.dumps({"fault": fault})) == 1
    line = capfd.readouterr().err.strip()
    assert line == f"error: tiny_hear_module could not be loaded: its process {how}"
    assert not (tmp_path / "out").exists()


def test_on_a_terminal_each_task_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from hear_m2d.evaluation.cli import TaskTable

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with TaskTable(["a", "long"]) as progress:
        progress("long", "embedding")
        progress("a", "top1_acc 0.5000")
    screen = terminal.getvalue()
    assert "a     waiting" in screen
    assert "long  embedding" in screen
    assert "a     top1_acc 0.5000" in screen


def test_a_dry_run_names_a_folder_that_cannot_be_used(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored/results.json").write_text("[1]")
    for args, message in (
        (["--tasks-dir", str(task)], "is a task itself: give its folder"),
        (["--tasks-dir", str(task), "--download", "--task", "esc50"], "is a task itself: give its folder"),
        (["--out", str(tmp_path / "tasks")], "tasks is the folder of the tasks: give another --out"),
        (["--out", str(task)], "is not empty and has no evaluation.json"),
        (["--out", str(tmp_path / "scored")], "is not empty and has no evaluation.json, but results.json"),
    ):
        assert evaluate_in(tmp_path, "--dry-run", *args) == 2
        error = capfd.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_a_dry_run_with_ray_needs_ray(
    tiny_tasks: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else real(name))
    assert evaluate_in(tmp_path, "--dry-run", "--ray", "auto") == 2
    assert "--ray needs Ray. Type: " in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--markdown", "--csv"])
def test_a_report_below_a_file_is_named_in_one_line(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert code_of("report", str(tmp_path), option, str(tmp_path / "file/x.html")) == 2
    assert capfd.readouterr().err == f"error: {tmp_path / 'file'} is a file: give {option} another place\n"
    assert code_of("report", str(tmp_path), option, str(tmp_path)) == 2
    assert "is a directory" in capfd.readouterr().err


def test_without_the_official_packages_the_commands_say_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import hear_m2d.cli

    real = hear_m2d.cli.importlib.util.find_spec
    absent = {"hearvalidator", "heareval"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else real(name))
    assert code_of("validate") == 2
    assert "pip install --no-deps --ignore-requires-python hearvalidator==2021.0.6" in capfd.readouterr().err
    assert code_of("evaluate", "--tasks-dir", "t", "--out", "o") == 2
    error = capfd.readouterr().err
    assert "pip install --no-deps heareval==2021.1.3" in error
    assert "in a checkout: make install" in error
    assert {"validate", "evaluate"} <= set(cli.list_commands(None))  # type: ignore[arg-type]


def test_a_rate_that_no_task_has_is_the_last_line_after_the_findings(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    assert evaluate_in(tmp_path, "--model-options", '{"sample_rate": 48000}') == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: the model takes audio at 48000 Hz")
    assert "hear-m2d tasks resample" in last
