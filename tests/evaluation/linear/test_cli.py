"""`hear-m2d probe`: a table or JSON of known scores; what is wrong is one line."""

import json

import pytest

pytest.importorskip("sklearn")


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HEAR_M2D_CACHE", str(tmp_path / "cache"))
    return run


def test_tasks_and_tables_are_scored_in_one_table(run, our_checkpoint, tiny_tasks, tmp_path):
    tones, strokes = tiny_tasks.scene_multiclass(tmp_path), tiny_tasks.folds(tmp_path)
    labels = json.loads((tones / "train.json").read_text())
    lines = [f"{tones.name}/16000/train/{name},{label[0]}" for name, label in labels.items()]
    (tmp_path / "mine.csv").write_text("\n".join(["file,label", *lines]))
    code, out, _ = run("probe", our_checkpoint, tones, strokes, tmp_path / "mine.csv", "--device", "cpu")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split() == ["task", "metric", "kNN", "linear", "majority", "clips", "classes"]
    scores = {row.split()[0]: row.split()[1:] for row in rows[:3]}
    assert scores.keys() == {tones.name, strokes.name, "mine"}
    for metric, knn, linear, majority, _, _ in scores.values():
        assert metric == "accuracy"
        assert float(knn) > 0.6  # tones of four pitches: even untrained networks tell them apart
        assert float(linear) > 0.6
        assert float(majority) < 0.5
    assert "splits are ours" in out
    assert len(list((tmp_path / "cache" / "probes").iterdir())) == 3


def test_json_holds_the_same_scores_and_a_second_call_repeats_them(run, our_checkpoint, tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multilabel(tmp_path)
    words = ("probe", our_checkpoint, task, "--json", "--device", "cpu")
    code, out, _ = run(*words)
    assert code == 0
    (found,) = json.loads(out)["probes"]
    assert found["metric"] == "mAP"
    assert found["clips"] == 64
    assert run(*words)[1] == out


def test_one_probe_alone_is_computed_on_fewer_clips(run, our_checkpoint, tiny_tasks, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path)
    code, out, _ = run("probe", our_checkpoint, task, "--knn", "--clips", 24, "--json", "--device", "cpu")
    assert code == 0
    (found,) = json.loads(out)["probes"]
    assert found["linear"] is None
    assert found["knn"] is not None
    assert found["notes"] == ["24 of 48 clips"]


def test_bad_input_is_one_line_and_exit_code_2(run, our_checkpoint, tiny_tasks, tmp_path):
    events = tiny_tasks.events(tmp_path)
    for words, says in (
        ((our_checkpoint, events), "a task of events"),
        ((our_checkpoint, tmp_path / "nowhere"), "there is no"),
        ((tmp_path / "nothing.safetensors", events), "no checkpoint"),
    ):
        code, out, err = run("probe", *words, "--device", "cpu")
        assert (code, out) == (2, "")
        assert err.strip().splitlines()[-1].startswith("error: ")
        assert says in err


def test_every_set_is_checked_before_the_first_is_embedded(run, our_checkpoint, tiny_tasks, tmp_path):
    good, events = tiny_tasks.scene_multiclass(tmp_path), tiny_tasks.events(tmp_path)
    assert run("probe", our_checkpoint, good, events, "--device", "cpu")[0] == 2
    assert not (tmp_path / "cache").exists()


def test_without_scikit_learn_the_command_says_what_to_type(run_python):
    hidden = "import sys; sys.modules['sklearn'] = None; from hear_m2d.cli import main; "
    done = run_python(hidden + "main(['probe', 'model', 'task'])")
    assert done.returncode == 2
    assert "pip install 'hear-m2d[evaluation]'" in done.stderr
    assert "Traceback" not in done.stderr
