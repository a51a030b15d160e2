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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {run.SETTINGS, ".gitignore"}
    said = capsys.readouterr().out
    assert "minutes was 1.0" in said
    assert "out.1" in said


def test_a_demo_inside_a_checkout_is_no_part_of_it(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    run.claim(tmp_path / "mine", SETTINGS)
    (tmp_path / "mine" / "work").write_text("")
    status = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, check=True)
    assert status.stdout == b""


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert run.main(["--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_audio_that_is_not_there_is_refused_in_one_line(tmp_path, capsys):
    assert run.main(["--audio", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() == f"error: {tmp_path / 'none'} is not a folder"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rate", "message"),
    [(None, "error: there is no task in"), (48000, "bells has 48000 Hz. Type: hear-m2d tasks resample")],
)
def test_tasks_that_cannot_be_scored_are_refused_before_anything_is_done(tmp_path, capsys, rate, message):
    (tmp_path / "tasks").mkdir()
    if rate:
        write_bells(tmp_path / "tasks", rate=rate)
    assert run.main(["--tasks-dir", str(tmp_path / "tasks"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_given_tasks_are_listed_without_what_lies_beside_them(commands_stand_in, capsys):
    write_bells(Path("mine"), rate=16000)
    Path("mine/papers").mkdir()
    run.main(["--tasks-dir", "mine", "--out", "out"])
    assert "tasks: bells\n" in capsys.readouterr().out


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


def test_an_out_that_is_a_file_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert run.main(["--out", str(tmp_path / "thesis.txt")]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"error: {tmp_path / 'thesis.txt'} is a file, and --out is a folder: give another --out"
    assert run.main(["--out", str(tmp_path / "thesis.txt" / "out")]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


def test_a_note_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / run.SETTINGS).write_text("[")
    assert run.main(["--out", str(tmp_path)]) == 2
    assert f"{tmp_path / run.SETTINGS} is no note of a demo" in capsys.readouterr().err


# Stands in for `python -m hear_m2d.cli`, leaving what that leaves; one model has a task without a score.
STAND_IN = """
import json, sys
from pathlib import Path
command, *rest = sys.argv[1:]
given = dict(zip(rest, rest[1:]))
if command == "validate":
    print("Looks good!")
if command != "evaluate":
    sys.exit(0)
out = Path(given["--out"])
name = given["--name"]
if name == "untrained" and Path("untrained dies").exists():
    sys.exit(1)
out.mkdir(parents=True, exist_ok=True)
bad = name == "untrained"
task = {"task": "bells", "metric": "mAP", "status": "ok", "error": None, "scores": {"mAP": 0.5}}
if bad:
    task |= {"status": "failed", "error": "mAP is not a number on test", "scores": {"mAP": None}}
harness = {"heareval": "2021.1.3", "hearvalidator": "2021.0.6", "grid": "default", "grid_points": 1}
place = {"python": "3.11", "torch": "2.11", "device": "cpu", "threads": 2}
found = {"harness": harness, "environment": place, "tasks": [task]}
(out / "results.json").write_text(json.dumps(found))
sys.exit(bad)
"""


def write_bells(folder, *, rate):
    """A task of no sound."""
    task = folder / "bells"
    (task / str(rate) / "test").mkdir(parents=True, exist_ok=True)
    said = {"task_name": "bells", "splits": ["test"], "evaluation": ["mAP"]}
    (task / "task_metadata.json").write_text(json.dumps(said))
    (task / "test.json").write_text("{}")
    (task / "labelvocabulary.csv").write_text("idx,label\n0,bell\n")


@pytest.fixture
def commands_stand_in(tmp_path, monkeypatch):
    """Every command of the demo is played by the stand-in, in a folder of its own; audio is not made."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(run, "gather", lambda settings, out: run.corpora.Corpus("two clips", 2, 0.1, []))
    monkeypatch.setattr(run.tasks, "write_tasks", lambda folder: write_bells(folder, rate=16000))
    monkeypatch.setattr(run.page, "curves", lambda out: [])
    return tmp_path


def test_a_task_without_a_score_is_named_on_the_page_and_the_demo_ends_with_1(commands_stand_in, capsys):
    for _ in range(2):  # again: it is not stuck
        assert run.main(["--out", "out"]) == 1
        said = capsys.readouterr()
        assert "no score: untrained, bells: mAP is not a number on test" in said.out
        assert "Open out/index.html" in said.out
        assert "--name untrained` ended with exit code 1" in said.err
        text = (commands_stand_in / "out" / "index.html").read_text()
        assert "untrained, bells: mAP is not a number on test" in text
        assert text.count("exit code 1") == 1


def test_an_evaluation_that_leaves_no_results_stops_the_demo(commands_stand_in, capsys):
    (commands_stand_in / "untrained dies").touch()
    assert run.main(["--out", "out"]) == 1
    assert "the demo stopped: `hear-m2d evaluate" in capsys.readouterr().err
    assert not (commands_stand_in / "out" / "index.html").exists()
    (commands_stand_in / "untrained dies").unlink()
    assert run.main(["--out", "out"]) == 1
    assert (commands_stand_in / "out" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.harness
def test_the_whole_demo_runs_and_runs_again(tmp_path):
    script = Path(run.__file__)
    program = [sys.executable, script, "--out", "out", "--clips", "40", "--minutes", "0.05"]
    for _ in range(2):
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert (tmp_path / "out" / "index.html").exists()
