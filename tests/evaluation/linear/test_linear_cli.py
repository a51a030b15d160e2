"""`hear-m2d linear`: any module, tables and JSON, the published figures beside, dry runs."""

import json

import numpy as np
import pytest
import soundfile

pytest.importorskip("sklearn")


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HEAR_M2D_CACHE", str(tmp_path / "cache"))
    return lambda *words: run("linear", *words, "--device", "cpu")


TINY = ("--module", "tiny_hear_module")


def test_a_task_and_a_list_are_scored_for_any_module_with_a_table_and_json(run, tiny_tasks, tmp_path):
    task, chords = tiny_tasks.folds(tmp_path), tiny_tasks.scene_multilabel(tmp_path)
    code, out, err = run(task, chords, *TINY, "--learning-rate", "0.05", "--out", tmp_path / "results.json")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[1].split()[:6] == ["task", "metric", "score", "95", "%", "kNN"]
    assert lines[2].split()[0] == task.name
    results = json.loads((tmp_path / "results.json").read_text())
    first, second = results["tasks"]
    assert [run["seed"] for run in first["runs"]] == [42, 43, 44]
    assert len(first["runs"][0]["folds"]) == 3
    assert first["score"] > 0.6  # of three classes, learned from 22 clips
    assert first["ci95"] >= 0
    assert (second["metric"], second["splits"]) == ("mAP", "given")
    assert results["settings"]["learning_rate"] == 0.05
    assert results["model"]["module"] == "tiny_hear_module"


def test_the_published_rate_of_m2d_is_the_default_for_it_and_ten_times_that_for_others(
    run, our_checkpoint, tiny_tasks, tmp_path
):
    task = tiny_tasks.scene_multiclass(tmp_path)
    assert "rate 3e-05, 240 features at 16000 Hz" in run(task, "--model", our_checkpoint, "--dry-run")[1]
    code, out, _ = run(task, *TINY, "--dry-run")
    assert code == 0
    assert "rate 0.0003, 64 features" in out
    assert f"{task.name}: 48 clips (whole clips), 4 classes, accuracy, splits 24/12/12" in out
    assert "0 of 1 parts exist; 3 layers to train" in out
    assert not (tmp_path / "cache").exists()


def test_a_named_set_is_put_among_the_published_figures_with_their_source(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = ["filename,fold,target,category"]
    (tmp_path / "audio").mkdir()
    for fold in range(1, 6):
        for target, pitch in enumerate((300, 900)):
            for take in range(5):
                name = f"{fold}-{take}-{target}.wav"
                rows.append(f"{name},{fold},{target},{'dog' if target else 'rain'}")
                tone = np.sin(2 * np.pi * pitch * np.arange(8000) / 16000 + rng.uniform())
                soundfile.write(tmp_path / "audio" / name, 0.3 * tone, 16000)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text("\n".join(rows) + "\n")
    code, out, err = run(f"esc50={tmp_path}", *TINY, "--compare", "--seeds", "42", "--learning-rate", "0.01")
    assert code == 0, err
    assert "esc50: 50 clips, 2000 in the published set: not comparable" in out
    lines = [line.split("  ")[0] for line in out.splitlines()]
    assert lines.index("CLAP2023 (Microsoft)") < lines.index("M2D/0.7") < lines.index("VGGish")
    assert "> tiny_hear_module †" in lines
    assert (
        "† not comparable: 50 clips, 2000 in the published set: not comparable; learning rate 0.01; seeds 42"
        in lines
    )
    assert "[1] M2D-CLAP Interspeech 2024" in out


def test_bad_input_is_one_line_and_exit_code_2(run, tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    for words, says in (
        ((task, task), "two tasks are called"),
        ((tmp_path / "nowhere",), "there is no"),
        (("esc5=nowhere",), "Did you mean esc50"),
        ((task, "--seeds", "4x"), "must be integers"),
        ((task, "--seeds", "42,42"), "must be different integers"),
        ((task, "--seeds", str(2**32)), "must be different integers"),
        ((task, "--learning-rate", "nan"), "is not a finite number"),
        ((task, "--unit", "nan"), "is not a finite number"),
        ((task, "--out", task / "train.json" / "out.json"), "train.json is a file: give --out another place"),
        ((task, "--cache", task / "train.json" / "x"), "train.json is a file: give --cache another place"),
        ((task, "--split-csv", "gtzan=split.csv"), "no data set gtzan=ROOT is given"),
        ((task, "--module", "no_such_module"), "cannot be imported"),
        ((f"gtzan={tmp_path}",), "needs --split-csv gtzan=FILE"),
    ):
        code, out, err = run(*words, *([] if "--module" in words else TINY))
        assert (code, out) == (2, ""), err
        assert says in err.strip().splitlines()[-1]
