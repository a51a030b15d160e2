import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hear_m2d.checkpoint.format import METADATA_KEY, read_tensors, write_tensors
from hear_m2d.evaluation.hear.harness import evaluate
from hear_m2d.evaluation.hear.plan import Progress, make_plan
from hear_m2d.evaluation.hear.record import RunRecord, describe
from hear_m2d.evaluation.hear.settings import Evaluation
from hear_m2d.utils.errors import InputError

pytestmark = pytest.mark.harness


@pytest.fixture(scope="module")
def tasks_dir(tiny_tasks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four kinds, and a stray file."""
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    for write in (
        tiny_tasks.scene_multiclass,
        tiny_tasks.scene_multilabel,
        tiny_tasks.events,
        tiny_tasks.folds,
    ):
        write(folder)
    (folder / "README.txt").write_text("a stray file breaks the kit's own walk over all tasks")
    return folder


def settings_for(tasks_dir: Path, out: Path, **more: Any) -> Evaluation:
    return Evaluation(
        **{
            "tasks_dir": tasks_dir,
            "out": out,
            "module": "tiny_hear_module",
            "device": "cpu",
            "grid_points": 1,
            **more,
        }
    )


def collect(lines: list[str]) -> Progress:
    return lambda task, text: lines.append(f"{task}: {text}")


def copy_tasks(tasks_dir: Path, target: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(tasks_dir / f"{name}-v1.0-full", target / f"{name}-v1.0-full")
    return target


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(
    tasks_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    """A finished evaluation of all four: its folder, its results and its lines of progress."""
    out = tmp_path_factory.mktemp("finished")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))  # for the tiny module
        results = evaluate(settings_for(tasks_dir, out / "out", jobs=2), progress=collect(lines))
        assert not list(Path.cwd().iterdir()), "nothing is written to the working directory"
    return out / "out", results, lines


def test_four_kinds_of_task_are_scored_above_chance_and_not_scored_again(
    finished: tuple[Path, dict[str, Any], list[str]], tasks_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results, lines = finished
    assert strict((out / "results.json").read_text()) == results
    assert results["format"] == 1
    assert results["model"]["name"] == "tiny_hear_module"
    assert results["harness"] | {"hearvalidator": ""} == {
        "heareval": "2021.1.3",
        "hearvalidator": "",
        "grid": "default",
        "grid_points": 1,
        "seed": 42,
    }
    assert results["environment"]["device"] == "cpu"
    chance = {"tones": 0.25, "chords": 0.5, "bells": 0.0, "strokes": 0.33}
    for entry in results["tasks"]:
        assert entry["status"] == "ok", entry
        assert math.isfinite(entry["score"])
        assert entry["score"] > chance[entry["task"].split("-")[0]] + 0.2
        assert entry["seconds"]["embedding"] > 0
        assert entry["seconds"]["prediction"] > 0
        assert entry["seconds"]["total"] > entry["seconds"]["prediction"]
        assert min(entry["stage_peak_memory_bytes"].values()) > 50e6
        assert entry["peak_memory_bytes"] == max(entry["stage_peak_memory_bytes"].values())
        assert (out / entry["raw"]).is_file()
    by_name = {entry["task"].split("-")[0]: entry for entry in results["tasks"]}
    assert [fold["fold"] for fold in by_name["strokes"]["folds"]] == ["fold00", "fold01", "fold02"]
    assert {"top1_acc", "top1_acc_std"} < set(by_name["strokes"]["scores"])
    assert "event_onset_200ms_fms_f_measure" in by_name["bells"]["scores"]

    assert "bells-v1.0-full: embedding" in lines
    assert sum(f"({left} of 4 left)" in line for left in (1, 2, 3) for line in lines) == 3
    assert any("strokes-v1.0-full: prediction, training split 3 of 3" in line for line in lines)
    assert not list(out.rglob("*.ckpt")), "the kit's training logs are removed"

    monkeypatch.setattr("subprocess.Popen", None)  # a finished evaluation does not start a process
    assert evaluate(settings_for(tasks_dir, out, jobs=2)) == results


def test_a_task_that_fails_or_whose_process_dies_leaves_the_others_their_scores(
    tasks_dir: Path, tmp_path: Path
) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "chords", "strokes", "tones")
    broken = mine / "strokes-v1.0-full/16000/fold01/fold01-03.wav"
    settings = settings_for(mine, tmp_path / "out", options={"fault": "die on short clips"}, grid="faster")
    plan = make_plan(settings)
    broken.write_bytes(b"no sound")  # after the check
    chords, strokes, tones = evaluate(settings, plan=plan)["tasks"]
    assert chords["status"] == strokes["status"] == "failed"
    assert "its process was ended by SIGKILL (probably out of memory): " in chords["error"]
    assert "logs/chords-v1.0-full.log" in chords["error"]
    assert "fold01-03.wav" in strokes["error"]
    assert strokes["score"] is None
    assert tones["status"] == "ok"
    assert "Traceback" in (tmp_path / "out/logs/strokes-v1.0-full.log").read_text()

    shutil.copytree(tasks_dir / strokes["task"], mine / strokes["task"], dirs_exist_ok=True)
    repaired = evaluate(replace(settings, tasks=(strokes["task"],)))["tasks"]
    assert [entry["status"] for entry in repaired] == ["failed", "ok", "ok"]
    assert repaired[2] == tones, "what was finished stays as it was"


@pytest.mark.slow
def test_labels_mended_after_a_failed_prediction_embed_only_that_task_again(
    tasks_dir: Path, tmp_path: Path
) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "strokes", "tones")
    settings = settings_for(mine, tmp_path / "out", grid="faster")
    plan = make_plan(settings)
    labels = mine / "tones-v1.0-full/train.json"
    whole = labels.read_text()
    labels.write_text(whole.replace('"a"', '"unheard of"'))  # after the check
    strokes, tones = evaluate(settings, plan=plan)["tasks"]
    assert (strokes["status"], tones["status"]) == ("ok", "failed")
    assert "unheard of" in tones["error"]
    labels.write_text(whole)
    lines: list[str] = []
    again = evaluate(settings, progress=collect(lines))["tasks"]
    assert again[0] == strokes
    assert again[1]["status"] == "ok"
    assert "tones-v1.0-full: the task was changed: it is embedded again" in lines
    assert not any(line.startswith("strokes-v1.0-full: embedding") for line in lines)


@pytest.mark.slow
def test_the_same_jobs_give_the_same_scores_twice_and_two_jobs_those_of_one(
    tasks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "strokes", "tones")

    def scores(out: str, jobs: int) -> list[Any]:
        results = evaluate(settings_for(mine, tmp_path / out, jobs=jobs, grid="faster"))
        assert results["environment"]["jobs"] == jobs
        return [(entry["task"], entry["folds"]) for entry in results["tasks"]]

    first = scores("first", 2)
    assert scores("second", 2) == first
    assert scores("third", 1) == first


@pytest.mark.slow
def test_embeddings_read_from_disk_give_the_scores_of_those_in_memory(
    tasks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "bells", "tones")
    settings = settings_for(mine, tmp_path / "in_memory", grid="faster")
    in_memory = evaluate(settings)["tasks"]
    from_disk = evaluate(replace(settings, out=tmp_path / "from_disk", in_memory=False))["tasks"]
    assert [entry["scores"] for entry in from_disk] == [entry["scores"] for entry in in_memory]
    for log in (tmp_path / "from_disk/logs").iterdir():
        assert "in_memory=False" in log.read_text()


@pytest.mark.slow
def test_a_killed_evaluation_takes_its_processes_with_it_and_the_same_command_continues(
    tasks_dir: Path, tmp_path: Path
) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "strokes", "tones")
    arguments = ["--module", "tiny_hear_module", "--tasks-dir", str(mine), "--out", str(tmp_path / "out")]
    arguments += ["--grid", "faster", "--grid-points", "1", "--jobs", "2"]
    command = [sys.executable, "-m", "hear_m2d.cli", "evaluate", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("embedding" in line for line in process.stderr)
    process.kill()
    process.communicate()
    results = evaluate(settings_for(mine, tmp_path / "out", grid="faster", jobs=2))["tasks"]
    assert [entry["status"] for entry in results] == ["ok", "ok"]


def test_a_broken_task_is_refused_before_any_work_with_every_finding(tasks_dir: Path, tmp_path: Path) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "strokes", "tones")
    labels = mine / "tones-v1.0-full/train.json"
    labels.write_text(labels.read_text().replace('"a"', '"unheard of"'))
    (mine / "tones-v1.0-full/16000/test/test03.wav").unlink()
    (mine / "strokes-v1.0-full/16000/fold01/fold01-03.wav").write_bytes(b"no sound")
    lines: list[str] = []
    with pytest.raises(InputError, match=r"correct strokes-v1\.0-full, tones-v1\.0-full as listed above"):
        evaluate(settings_for(mine, tmp_path / "out"), progress=collect(lines))
    for finding in ("unheard of", "test03.wav", "fold01-03.wav"):
        assert any(finding in line for line in lines), lines
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    tasks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(InputError, match=r"GB of disk are needed, and 0\.0 GB are free"):
        evaluate(settings_for(tasks_dir, tmp_path / "out"))


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing_and_the_same_command_continues(
    tasks_dir: Path, tmp_path: Path, small_disk: Path
) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "tones")
    settings = settings_for(mine, small_disk / "out", grid="faster")
    plan = make_plan(settings)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3 * 2**20 - 200_000))
    with pytest.raises(OSError, match="No space left on device"):  # hear-m2d: "make room", exit code 1
        evaluate(settings, plan=plan)
    assert "No space left on device" in (small_disk / "out/logs/tones-v1.0-full.log").read_text()
    filler.unlink()
    (entry,) = evaluate(settings)["tasks"]
    assert entry["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["one class", "no events"])
def test_a_split_that_cannot_be_scored_is_reported(tasks_dir: Path, tmp_path: Path, fault: str) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "bells", "tones")
    test = mine / ("tones-v1.0-full/test.json" if fault == "one class" else "bells-v1.0-full/test.json")
    label: Any = ["a"] if fault == "one class" else []
    test.write_text(json.dumps(dict.fromkeys(json.loads(test.read_text()), label)))
    if fault == "one class":
        metadata = mine / "tones-v1.0-full/task_metadata.json"
        metadata.write_text(metadata.read_text().replace('["top1_acc", "mAP", "d_prime"]', '["aucroc"]'))
    settings = settings_for(mine, tmp_path / "out", tasks=(test.parent.name,), grid="faster")
    lines: list[str] = []
    try:
        (entry,) = evaluate(settings, progress=collect(lines))["tasks"]
    except InputError:
        assert any(test.parent.name in line for line in lines)
    else:
        assert entry["status"] == "failed"
        assert "is not a number on test" in entry["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fault": "load"}, "^tiny_hear_module could not be loaded: no such fault$"),
        ({"falt": "x"}, "tiny_hear_module could not be loaded: TypeError: .*'falt'"),
        ({"sample_rate": 32000}, "takes audio at 32000 Hz.*tones-v1.0-full has 16000 Hz"),
        ({"fault": "no attributes"}, "lacks parts of the HEAR API: the model's scene_embedding_size, the"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_any_work(
    tasks_dir: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(settings_for(tasks_dir, tmp_path / "out", options=options))
    assert not (tmp_path / "out").exists(), "it is free for the corrected call"


def test_a_score_that_is_not_a_number_is_read_again_not_run_again(
    finished: tuple[Path, dict[str, Any], list[str]],
    tasks_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    monkeypatch.setattr("subprocess.Popen", None)
    (raw,) = (tmp_path / "out").rglob("tones-v1.0-full/test.predicted-scores.json")
    printed = json.loads(raw.read_text())
    printed["test"]["test_score"] = math.nan
    raw.write_text(json.dumps(printed))
    lines: list[str] = []
    settings = settings_for(tasks_dir, tmp_path / "out", tasks=("tones-v1.0-full",))
    (*_, entry) = evaluate(settings, progress=collect(lines))["tasks"]
    assert entry["status"] == "failed"
    assert len(lines) == 1
    assert "finished before, failed: top1_acc is not a number" in lines[0]


def test_the_score_of_another_version_of_a_task_is_not_overwritten(
    finished: tuple[Path, dict[str, Any], list[str]], tasks_dir: Path, tmp_path: Path
) -> None:
    mine = copy_tasks(tasks_dir, tmp_path / "tasks", "tones")
    labels = mine / "tones-v1.0-full/train.json"
    labels.write_text(labels.read_text().replace('"a"', '"b"'))
    with pytest.raises(InputError, match="holds the score of another version of tones"):
        evaluate(settings_for(mine, finished[0]))


def test_two_evaluations_do_not_share_a_folder_at_once(tasks_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tasks_dir, tmp_path / "out")
    with (
        RunRecord.open(tmp_path / "out", describe(settings)).lock(),
        pytest.raises(InputError, match="another process is at work in"),
    ):
        evaluate(settings)


def test_a_checkpoint_of_this_package_is_scored_by_name_and_further_tasks_join(
    tasks_dir: Path, tmp_path: Path, our_checkpoint: Path
) -> None:
    settings = settings_for(
        tasks_dir, tmp_path / "out", module="hear_m2d", model=our_checkpoint, grid="faster"
    )
    first = evaluate(replace(settings, tasks=("tones-v1.0-full",)))["tasks"]
    results = evaluate(replace(settings, tasks=("bells-v1.0-full",)))
    assert results["tasks"][1:] == first
    assert [entry["status"] for entry in results["tasks"]] == ["ok"] * 2, results["tasks"]
    assert results["model"]["name"] == "ours"
    assert len(results["model"]["sha256"]) == 64
    assert results["model"]["config"]["encoder"]["width"] == 48
    tensors, facts = read_tensors(our_checkpoint, METADATA_KEY)
    write_tensors(our_checkpoint, tensors, {METADATA_KEY: {**facts, "licence": "another"}})
    with pytest.raises(InputError, match="holds another evaluation: sha256"):
        evaluate(settings)
