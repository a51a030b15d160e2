"""`hear-m2d`: help, info, and one line with exit code 2 for whatever cannot be used."""

import errno
import json
import os
import subprocess
import sys

import click
import pytest
import torch

from hear_m2d import cli
from hear_m2d.utils.commands import PartCommand
from hear_m2d.utils.errors import MissingPackageError, WorkFailedError


def assert_one_line(result, *words):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_no_arguments_print_the_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == run("--help")[1]
    assert out.startswith("Usage: hear-m2d ")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands_of_every_part(run, flag):
    code, out, err = run(flag)
    assert code == 0
    assert err == ""
    for name in ("info", "prepare", "pretrain", "visualize", "validate", "evaluate"):
        assert f"\n  {name} " in out


def test_version_is_printed(run):
    code, out, _ = run("--version")
    assert code == 0
    assert "hear-m2d" in out


def test_info_describes_a_checkpoint_in_words(run, checkpoint_path):
    code, out, err = run("info", checkpoint_path)
    assert (code, err) == (0, "")
    for words in ("kind", "m2d", "80x64", "16x16", "16000", "-7.1", "4.2", "Apache-2.0", "tiny_m2d"):
        assert words in out


def test_info_describes_a_checkpoint_in_json(run, checkpoint_path):
    code, out, _ = run("info", checkpoint_path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["sample_rate"] == 16000
    assert facts["scene_embedding_size"] == 320
    assert facts["training"] == {"recipe": "tiny_m2d", "steps": 3}


def test_info_describes_a_published_checkpoint_with_its_license(run, fixtures_dir):
    (path,) = fixtures_dir.glob("*fxc_enconly/*.pth")
    code, out, _ = run("info", path, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["sample_rate"] == 32000
    assert "NTT" in facts["licence"]


def test_info_of_a_missing_file(run, tmp_path):
    assert_one_line(run("info", tmp_path / "no.safetensors"), "no.safetensors")


def test_info_of_a_folder(run, tmp_path):
    assert_one_line(run("info", tmp_path), "holds no file that ends in")


def test_info_without_a_file_describes_the_model_of_the_package(run):
    code, out, _ = run("info")
    assert code == 0
    assert "default.safetensors" in out


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x80\x04\x95junk", b"\x00" * 99, b"two\nlines\n"]
)
def test_info_of_a_file_that_is_no_checkpoint(run, tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    assert_one_line(run("info", tmp_path / "x.pth"), "x.pth")


def test_info_of_a_pickle_that_is_no_checkpoint(run, tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    assert_one_line(run("info", tmp_path / "x.pth"), "is not a readable checkpoint")


def test_info_of_a_checkpoint_with_damaged_tensors(run, checkpoint_path):
    data = bytearray(checkpoint_path.read_bytes())
    data[-1] ^= 1
    checkpoint_path.write_bytes(data)
    assert_one_line(run("info", checkpoint_path), "damaged")


def test_an_unknown_command_shows_the_nearest(run):
    assert_one_line(run("pretrian"), "pretrain")
    assert_one_line(run("inof", "file"), "info")


@pytest.mark.parametrize("arguments", [("info", "a", "b"), ("info", "a", "--jsno"), ("--wrong",)])
def test_wrong_usage_is_one_line(run, arguments):
    assert_one_line(run(*arguments))


COMMANDS = {name: cli.cli.get_command(click.Context(cli.cli), name) for name in cli.COMMANDS}
FLOATS = [
    (name, option.opts[0])
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option.type, click.types.FloatParamType)
]


@pytest.mark.parametrize(("command", "option"), FLOATS)
def test_nan_and_inf_are_not_taken_as_numbers(run, command, option):
    for value in ("nan", "inf"):
        assert_one_line(run(command, option, value), f"'{option}': {value} is not ")


def test_the_options_that_must_be_finite_are_found():
    assert {("pretrain", "--minutes"), ("prepare", "--max-clip-s"), ("visualize", "--start")} < set(FLOATS)


def test_failed_work_exits_with_1(run, monkeypatch):
    @click.command()
    def fail():
        raise WorkFailedError("the validator refused")

    monkeypatch.setitem(cli.cli.commands, "fail", fail)
    code, _, err = run("fail")
    assert (code, err) == (1, "error: the validator refused\n")


def _compiler_is_missing():
    from torch._inductor.exc import InvalidCxxCompiler

    return InvalidCxxCompiler()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OSError(errno.ENOSPC, "No space left on device", "out/x"), ["out/x", "make room"]),
        (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), ["too little memory", "CUDA"]),
        (_compiler_is_missing, ["cannot compile", "C++ compiler"]),
    ],
)
def test_a_machine_that_is_too_small_is_failed_work_in_one_line(run, monkeypatch, make, words):
    error = make()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("hear_m2d.checkpoint.resolve.read_weights", fail)
    code, out, err = run("info", "x")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError, ImportError])
def test_a_bug_keeps_its_traceback_and_is_not_reported_as_bad_input(monkeypatch, kind):
    def fail(*_, **__):
        raise kind("a bug")

    monkeypatch.setattr("hear_m2d.checkpoint.resolve.read_weights", fail)
    with pytest.raises(kind, match="a bug"):
        cli.main(["info", "x"])


def test_a_missing_optional_package_is_reported_in_one_line(run, monkeypatch):
    def fail(*_, **__):
        raise MissingPackageError("Parquet needs pyarrow. Type: pip install pyarrow", name="pyarrow")

    monkeypatch.setattr("hear_m2d.checkpoint.resolve.read_weights", fail)
    assert_one_line(run("info", "x"), "pip install pyarrow")


def test_an_interrupt_is_reported_in_one_line(run, monkeypatch):
    @click.command()
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.cli.commands, "interrupted", interrupted)
    code, _, err = run("interrupted")
    assert (code, err.strip()) == (130, "interrupted")


def test_a_command_whose_packages_are_missing_says_what_to_type(run, monkeypatch):
    @click.command(cls=PartCommand, needs=["no_such_package"], install="pip install x[y]")
    def partial():
        """Do something."""

    monkeypatch.setitem(cli.cli.commands, "partial", partial)
    assert_one_line(run("partial"), "needs no_such_package", "Type: pip install x[y]")
    code, out, _ = run("--help")
    assert code == 0
    assert "not installed: pip install x[y]" in out


def test_a_traceback_is_shown_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("HEAR_M2D_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["info", str(tmp_path / "no.pth")])


def test_the_module_runs_as_a_program(checkpoint_path):
    command = [sys.executable, "-m", "hear_m2d.cli", "info", str(checkpoint_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "16x16" in done.stdout


def test_ctrl_c_while_torch_loads_prints_one_line():
    """The signal comes while `import torch` runs, as a slow disk makes likely."""
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from hear_m2d.cli import main\n"
        "main(['info', 'x.safetensors'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted")


def test_ctrl_c_while_the_first_modules_load_prints_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-P", "-m", "hear_m2d", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_importing_the_package_does_not_load_torch():
    code = "import sys, hear_m2d, hear_m2d.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
