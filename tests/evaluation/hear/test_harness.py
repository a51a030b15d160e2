import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hear_m2d.checkpoint.format import METADATA_KEY, read_tensors, write_tensors
from hear_m2d.evaluation.hear.harness import evaluate
from hear_m2d.evaluation.hear.record import RunRecord, describe
from hear_m2d.evaluation.hear.settings import Evaluation
from hear_m2d.utils.errors import WorkFailedError

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


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no strict JSON")

    return json.loads(text, parse_constant=refuse)


def test_four_kinds_of_task_are_scored_above_chance_and_not_scored_again(
    tasks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    lines: list[str] = []
    settings = settings_for(tasks_dir, tmp_path / "out")
    results = evaluate(settings, progress=lines.append)

    assert strict((tmp_path / "out/results.json").read_text()) == results
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
        assert entry["peak_memory_bytes"] > 50e6
        assert (tmp_path / "out" / entry["raw"]).is_file()
    by_name = {entry["task"].split("-")[0]: entry for entry in results["tasks"]}
    assert [fold["fold"] for fold in by_name["strokes"]["folds"]] == ["fold00", "fold01", "fold02"]
    assert {"top1_acc", "top1_acc_std"} < set(by_name["strokes"]["scores"])
    assert "event_onset_200ms_fms_f_measure" in by_name["bells"]["scores"]

    assert "task 1 of 4, bells-v1.0-full: embedding" in lines
    assert any("strokes-v1.0-full: prediction, training split 3 of 3" in line for line in lines)
    assert not list((tmp_path / "out").rglob("*.ckpt")), "the kit's training logs are removed"
    assert not list((tmp_path / "work").iterdir()), "nothing lands in the working directory"

    monkeypatch.setattr("subprocess.Popen", None)  # a finished evaluation starts no process
    again = evaluate(settings, progress=lines.append)
    assert again == results


def test_a_task_that_fails_or_kills_the_process_leaves_the_others_their_scores(
    tasks_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "tasks"
    for name in ("chords-v1.0-full", "strokes-v1.0-full", "tones-v1.0-full"):
        shutil.copytree(tasks_dir / name, mine / name)
    (mine / "strokes-v1.0-full/16000/fold01/fold01-03.wav").write_bytes(b"no sound")
    settings = settings_for(mine, tmp_path / "out", options={"fault": "die on short clips"}, grid="faster")
    chords, strokes, tones = evaluate(settings, progress=print)["tasks"]
    assert chords["status"] == strokes["status"] == "failed"
    assert "process ended with code 9" in chords["error"]
    assert "fold01-03.wav" in strokes["error"]
    assert strokes["score"] is None
    assert tones["status"] == "ok"
    assert (tmp_path / "out/harness.log").stat().st_size > 0

    shutil.copytree(tasks_dir / strokes["task"], mine / strokes["task"], dirs_exist_ok=True)
    repaired = evaluate(replace(settings, tasks=(strokes["task"],)), progress=print)["tasks"]
    assert [entry["status"] for entry in repaired] == ["failed", "ok", "ok"]
    assert repaired[2] == tones, "what was finished stays as it was"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fault": "load"}, "^no such fault$"),
        ({"falt": "x"}, "tiny_hear_module could not be loaded: TypeError: .*'falt'"),
        ({"sample_rate": 32000}, "hears 32000 Hz.*tones-v1.0-full has 16000 Hz"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_any_work(
    tasks_dir: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(settings_for(tasks_dir, tmp_path / "out", options=options))
    assert not (tmp_path / "out/embeddings").exists()


def test_a_refused_call_leaves_the_folder_to_the_corrected_one(tasks_dir: Path, tmp_path: Path) -> None:
    mine = tmp_path / "tasks"
    shutil.copytree(tasks_dir / "tones-v1.0-full", mine / "tones-v1.0-full")
    settings = settings_for(mine, tmp_path / "out", grid="faster")
    no_checkpoint = tmp_path / "no.safetensors"
    no_checkpoint.write_text("no checkpoint")
    for wrong in (
        {"options": {"sample_rate": 32000}},
        {"options": {"falt": "x"}},
        {"module": "hear_m2d", "model": no_checkpoint},
    ):
        with pytest.raises(ValueError):  # noqa: PT011  what it says is another test's
            evaluate(replace(settings, **wrong))
        assert not (tmp_path / "out/evaluation.json").exists()
    with pytest.raises(WorkFailedError, match="could not be loaded"):
        evaluate(replace(settings, options={"fault": "die at load"}))
    (entry,) = evaluate(settings)["tasks"]
    assert entry["status"] == "ok"


def test_a_score_that_is_no_number_is_read_again_and_run_again_once_its_folder_is_gone(
    tasks_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "tasks"
    shutil.copytree(tasks_dir / "tones-v1.0-full", mine / "tones-v1.0-full")
    settings = settings_for(mine, tmp_path / "out", grid="faster")
    (entry,) = evaluate(settings)["tasks"]
    raw = tmp_path / "out" / entry["raw"]
    printed = json.loads(raw.read_text())
    printed["test"]["test_score"] = math.nan
    raw.write_text(json.dumps(printed))
    lines: list[str] = []
    (entry,) = evaluate(settings, progress=lines.append)["tasks"]
    assert entry["status"] == "failed"
    assert len(lines) == 1
    assert "finished before, failed: top1_acc is not a number" in lines[0]
    shutil.rmtree(raw.parent)
    (entry,) = evaluate(settings)["tasks"]
    assert entry["status"] == "ok"


def test_an_unknown_module_is_refused(tasks_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_module could not be loaded: ModuleNotFoundError"):
        evaluate(settings_for(tasks_dir, tmp_path / "out", module="no_such_module"))


def test_two_evaluations_do_not_share_a_folder_at_once(tasks_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tasks_dir, tmp_path / "out")
    with (
        RunRecord.open(tmp_path / "out", describe(settings)).alone(),
        pytest.raises(ValueError, match="at work"),
    ):
        evaluate(settings)


def test_a_checkpoint_of_ours_is_scored_by_name_and_further_tasks_join(
    tasks_dir: Path, tmp_path: Path, our_checkpoint: Path
) -> None:
    settings = settings_for(
        tasks_dir, tmp_path / "out", module="hear_m2d", model=our_checkpoint, grid="faster"
    )
    first = evaluate(replace(settings, tasks=("tones-v1.0-full",)))["tasks"]
    results = evaluate(settings)
    assert results["tasks"][3:] == first
    assert [entry["status"] for entry in results["tasks"]] == ["ok"] * 4, results["tasks"]
    assert results["model"]["name"] == "ours"
    assert len(results["model"]["sha256"]) == 64
    assert results["model"]["config"]["encoder"]["width"] == 48
    tensors, facts = read_tensors(our_checkpoint, METADATA_KEY)
    write_tensors(our_checkpoint, tensors, {METADATA_KEY: {**facts, "licence": "another"}})
    with pytest.raises(ValueError, match="holds another evaluation: sha256"):
        evaluate(settings)
