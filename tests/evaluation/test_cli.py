import json
import re
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from hear_m2d.cli import cli, main

pytestmark = pytest.mark.harness


def code_of(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert isinstance(end.value.code, int)
    return end.value.code


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
        (["--module", "tiny_hear_module", "--model-options", '{"fault": "load"}'], "error: no such fault"),
        (["--module", "no_such_module"], "No module named 'no_such_module'"),
        (["--model-options", "{"], "'{' is no JSON"),
        (["--model-options", "[1]"], "no JSON object"),
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
        ("hf://lab/birds", "error: hf://lab/birds is not in the hub's cache, and HF_HUB_OFFLINE is set"),
        ("absent.safetensors", "error: no checkpoint absent.safetensors: give the path of"),
        ("m2d-bird", "error: no checkpoint m2d-bird: there is no such file."),
        ("", "error: there is no default checkpoint yet."),
    ],
)
def test_a_model_of_ours_that_is_not_there_gets_the_sentence_of_load_model(
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
    args = [
        "--module",
        "tiny_hear_module",
        "--tasks-dir",
        str(tmp_path / "tasks"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert code_of("evaluate", *args, "--grid", "faster", "--grid-points", "2", "--device", "cpu") == 0
    printed = capfd.readouterr()
    assert re.search(r"tones-v1\.0-full +top1_acc +[01]\.\d{4} ", printed.out)
    assert "task 1 of 1, tones-v1.0-full: prediction, grid point 2 of 2" in printed.err
    assert json.loads((tmp_path / "out/results.json").read_text())["harness"]["grid_points"] == 2


def test_evaluate_ends_with_1_where_a_task_fails(
    tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    args = [
        "--module",
        "tiny_hear_module",
        "--tasks-dir",
        str(tmp_path / "tasks"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert code_of("evaluate", *args, "--model-options", '{"fault": "raise"}') == 1
    printed = capfd.readouterr()
    assert "RuntimeError: this model always fails" in printed.err
    assert printed.err.strip().split("\n")[-1].startswith("error: no score for tones-v1.0-full")
    assert re.search(r"tones-v1\.0-full +top1_acc +– .*failed", printed.out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "tonnes-v1.0-full"], "Did you mean tones-v1.0-full"),
        (["--grid", "default2"], "unknown grid 'default2'"),
        (["--model", "absent.safetensors"], "no checkpoint at"),
        (["--model-options", '{"a":'], "is no JSON"),
        (["--model-options", '{"sample_rate": 48000}'], "hears 48000 Hz"),
        (["--tasks-dir", "absent"], "no folder of tasks at absent"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (
            ["--model-options", '{"fault": "load at run time"}'],
            "could not be loaded: RuntimeError: no weights",
        ),
        (["--out", __file__], f"{__file__} is a file, and --out is a folder"),
        (["--out", f"{__file__}/out"], "Not a directory"),
    ],
)
def test_evaluate_ends_with_2_and_one_line_where_the_input_is_bad(
    args: list[str], message: str, tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    start = ["evaluate", "--module", "tiny_hear_module", "--tasks-dir", str(tmp_path / "tasks")]
    assert code_of(*start, "--out", str(tmp_path / "out"), *args) == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("die at load", "ended with code 7: malloc: the last words"),
        ("killed at load", "ended by SIGKILL, as where memory runs out: it said nothing"),
    ],
)
def test_a_model_whose_process_dies_while_it_is_loaded_ends_with_1_and_one_line(
    fault: str, how: str, tiny_tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "tasks", sizes=(4, 4, 4))
    start = ["evaluate", "--module", "tiny_hear_module", "--tasks-dir", str(tmp_path / "tasks")]
    options = json.dumps({"fault": fault})
    assert code_of(*start, "--out", str(tmp_path / "out"), "--model-options", options) == 1
    log = tmp_path / "out/harness.log"
    said = capfd.readouterr().err.strip()
    assert "\n" not in said
    assert said.startswith("error: tiny_hear_module could not be loaded: the harness's process")
    assert f"{how} (its log: {log})" in said
    assert log.is_file()


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
    said = capfd.readouterr().err
    assert "pip install --no-deps heareval==2021.1.3" in said
    assert "in a checkout: make install" in said
    assert {"validate", "evaluate"} <= set(cli.list_commands(None))  # type: ignore[arg-type]
