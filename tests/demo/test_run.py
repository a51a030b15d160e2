import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import run

SETTINGS = run.Settings(audio=None, tasks_dir=None, minutes=1.0, clips=8, seed=0)


def test_the_same_settings_continue(tmp_path, capsys):
    run.claim(tmp_path / "out", SETTINGS)
    (tmp_path / "out" / "work").write_text("kept")
    run.claim(tmp_path / "out", SETTINGS)
    assert (tmp_path / "out" / "work").exists()
    assert "only what is missing" in capsys.readouterr().out


def test_other_settings_move_the_old_demo_aside_and_say_so(tmp_path, capsys):
    run.claim(tmp_path / "out", SETTINGS)
    (tmp_path / "out" / "work").write_text("kept")
    run.claim(tmp_path / "out", replace(SETTINGS, minutes=2.0))
    assert (tmp_path / "out.1" / "work").read_text() == "kept"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [run.SETTINGS]
    said = capsys.readouterr().out
    assert "minutes was 1.0" in said
    assert "out.1" in said


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert run.main(["--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_audio_that_is_not_there_is_refused_in_one_line(tmp_path, capsys):
    assert run.main(["--audio", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() == f"error: {tmp_path / 'none'} is not a folder"
    assert not (tmp_path / "out").exists()


def test_a_failing_command_stops_the_demo_and_is_named(tmp_path, monkeypatch, capsys):
    def fail(settings, out):
        run.Demo(out).command("info", out / "no such file")

    monkeypatch.setattr(run, "make", fail)
    assert run.main(["--out", str(tmp_path / "out")]) == 1
    assert "`hear-m2d info" in capsys.readouterr().err


def test_a_step_with_nothing_left_to_do_keeps_its_first_time(tmp_path):
    run.Demo(tmp_path).remember("pretrain", 75.0)
    again = run.Demo(tmp_path)
    again.remember("pretrain", 0.5)
    assert json.loads((tmp_path / "times.json").read_text()) == {"pretrain": 75.0}
    assert again.ran == ["pretrain"]


def test_commands_are_the_public_ones_with_their_output_kept(tmp_path):
    demo = run.Demo(tmp_path)
    assert "Usage" in demo.command("--help", keep=True)
    assert demo.ran == ["hear-m2d --help"]
    with pytest.raises(run.StepFailedError, match="exit code 2"):
        demo.command("no-such-command")


@pytest.mark.slow
@pytest.mark.harness
def test_the_whole_demo_runs_and_runs_again(tmp_path):
    script = Path(run.__file__)
    program = [sys.executable, script, "--out", "out", "--clips", "40", "--minutes", "0.05"]
    for _ in range(2):
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert (tmp_path / "out" / "index.html").exists()
