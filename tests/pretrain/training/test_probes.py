"""Probes in a run: they change nothing, survive a kill, agree with `hear-m2d probe`, and fail gently."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d.evaluation.linear.probes import embed_task, probe, read_labeled
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.probes import Probes, ProbeSettings
from hear_m2d.pretrain.training.run_folder import RunFolder

pytest.importorskip("sklearn")

TINY = Recipe(
    objective="m2d",
    optimizer=OptimizerConfig(base_lr=0.03),
    decoder=DecoderConfig(width=16, depth=1, heads=2),
    encoder=EncoderConfig(width=16, depth=1, heads=2, input_size=(80, 64)),
    momentum_start=0.9,
    momentum_end=0.99,
    batch_size=4,
    steps=8,
    precision="float32",
)
OBJECTIVES = {
    "m2d": TINY,
    "msm_mae": dataclasses.replace(TINY, objective="msm_mae", norm_pix_loss=False, mask_ratio=0.75),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones of three pitches in noise, and tones.csv, which says which is which."""
    folder = tmp_path_factory.mktemp("audio")
    rng, lines = np.random.default_rng(0), ["file,label"]
    for i in range(15):
        t = np.arange(8000) / 16000
        pitch, label = ((300, "low"), (900, "mid"), (2700, "high"))[i % 3]
        sound = 0.2 * np.sin(2 * np.pi * pitch * t + rng.uniform()) + 0.05 * rng.normal(size=8000)
        soundfile.write(folder / f"{i}.wav", sound, 16000)
        lines.append(f"{i}.wav,{label}")
    (folder / "tones.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(folder, out, progress=False)
    return LogMelData(out)


@pytest.fixture
def settings(folder):
    return ProbeSettings((folder / "tones.csv",), "4steps")


def log(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], [line for line in lines if "probe_s" in line]


def scores(out):
    return [{name: value for name, value in line.items() if name != "probe_s"} for line in log(out)[1]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_with_probes_is_the_run_without_them_bit_for_bit(objective, data, settings, tmp_path, weights):
    recipe = OBJECTIVES[objective]
    before = torch.get_rng_state()
    train(recipe, data, tmp_path / "with", device="cpu", log_every=1, probes=settings)
    assert torch.equal(torch.get_rng_state(), before)
    train(recipe, data, tmp_path / "without", device="cpu", log_every=1)
    probed, plain = log(tmp_path / "with"), log(tmp_path / "without")
    assert [line["step"] for line in probed[1]] == [0, 4, 8]
    assert not plain[1]
    assert [line["loss"] for line in probed[0]] == [line["loss"] for line in plain[0]]
    first, second = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_resumed_run_has_the_probes_of_an_uninterrupted_one(stop, data, settings, tmp_path, monkeypatch):
    habits = {"device": "cpu", "log_every": 1, "save_every": 2, "probes": settings}
    train(TINY, data, tmp_path / "whole", **habits)
    append = RunFolder.log

    def die(self, line):
        append(self, line)
        if line["step"] == stop and "loss" in line:  # before the step's own probe
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", die)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, data, tmp_path / "cut", **habits)
    monkeypatch.setattr(RunFolder, "log", append)
    train(TINY, data, tmp_path / "cut", **habits)
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")
    assert len(scores(tmp_path / "whole")) == 3


def test_a_run_killed_before_its_first_state_starts_its_log_again(data, settings, tmp_path, monkeypatch):
    append = RunFolder.log

    def die(self, line):
        append(self, line)
        if line["step"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", die)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, data, tmp_path / "run", device="cpu", log_every=1, probes=settings)
    monkeypatch.setattr(RunFolder, "log", append)
    train(TINY, data, tmp_path / "run", device="cpu", log_every=1, probes=settings)
    assert [line["step"] for line in log(tmp_path / "run")[1]] == [0, 4, 8]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_last_probe_is_what_the_checkpoint_gives(precision, data, folder, settings, tmp_path):
    recipe = dataclasses.replace(TINY, precision=precision)
    model = hear_m2d.load_model(train(recipe, data, tmp_path / "run", device="cpu", probes=settings))
    labeled = read_labeled(folder / "tones.csv", 16000)
    result = probe(embed_task(model, labeled), labeled)
    last = log(tmp_path / "run")[1][-1]
    assert last["probe/tones/knn"] == pytest.approx(result.knn)
    assert last["probe/tones/linear"] == pytest.approx(result.linear)


def test_the_network_is_probed_as_it_is_then_not_as_it_was(data, settings, tmp_path, monkeypatch):
    """Embeddings of two probes differ: a copy taken at the start would give the same ones for ever."""
    import hear_m2d.evaluation.linear.probes as linear

    seen = []

    def remember(embeddings, labeled):
        seen.append(embeddings)
        return probe(embeddings, labeled)

    monkeypatch.setattr(linear, "probe", remember)
    train(TINY, data, tmp_path / "run", device="cpu", probes=settings)
    assert len(seen) == 3
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[1], seen[2])


def test_the_maximum_number_of_clips_is_kept_and_logged(data, folder, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = ProbeSettings((folder / "tones.csv",), "8steps", clips=9)
    assert len(Probes(settings, sample_rate=16000).sets[0].clips) == 9
    train(TINY, data, tmp_path / "run", device="cpu", probes=settings)
    assert "9 of 15 clips" in caplog.text


def test_a_set_that_is_gone_in_mid_run_is_left_out_with_a_warning(
    data, settings, folder, tmp_path, caplog, monkeypatch
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    append = RunFolder.log

    def remove(self, line):
        append(self, line)
        if line["step"] == 1:
            (copy / "3.wav").unlink()

    monkeypatch.setattr(RunFolder, "log", remove)
    settings = dataclasses.replace(settings, paths=(copy / "tones.csv",))
    assert train(TINY, data, tmp_path / "run", device="cpu", log_every=1, probes=settings).exists()
    assert ["probe/tones/knn" in line for line in scores(tmp_path / "run")] == [True, False, False]
    assert "no probe of tones at step 4" in caplog.text


@pytest.mark.parametrize(
    ("every", "steps"),
    [("3", 30), ("3epochs", 30), ("1 epoch", 10), ("500steps", 500), ("1 step", 1)],
)
def test_every_counts_epochs_or_steps(every, steps):
    assert ProbeSettings(every=every).steps(10) == steps


def test_fewer_clips_than_a_batch_make_epochs_of_a_step():
    assert ProbeSettings(every="2").steps(0) == 2


@pytest.mark.parametrize("every", ["", "0", "often", "3 days", "-1", "1.5 epochs"])
def test_every_of_something_else_is_refused(every):
    with pytest.raises(ValueError, match="give epochs or steps"):
        ProbeSettings(every=every).steps(10)


def test_without_probes_scikit_learn_is_not_needed_and_with_them_it_is_asked_for(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not Probes(ProbeSettings(), sample_rate=16000).due(0, 10)
    with pytest.raises(ImportError, match=r"scikit-learn\. Type: pip install 'hear-m2d\[evaluation\]'"):
        Probes(settings, sample_rate=16000)


def test_two_sets_of_one_name_are_refused(settings):
    with pytest.raises(ValueError, match="two probes are called tones"):
        Probes(dataclasses.replace(settings, paths=settings.paths * 2), sample_rate=16000)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--probe", "nowhere"], "there is no nowhere"),
        (["--probe-every", "often"], "give epochs or steps"),
        (["--track", "wand"], "Did you mean wandb"),
    ],
)
def test_a_bad_probe_or_tracker_is_refused_before_audio_is_prepared(words, says, folder, tmp_path, run):
    command = ["pretrain", "--recipe", "demo_m2d", "--data", str(folder), "--out", str(tmp_path / "run")]
    code, _, err = run(*command, "--steps", "1", *words)
    assert code == 2
    assert says in err
    assert not (tmp_path / "run").exists()


def test_the_command_probes_and_logs_to_tensorboard(folder, tmp_path, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tmp_path / "tiny.toml"
    fields = TINY.to_json()
    lines = [f"{key} = {json.dumps(fields[key])}" for key in ("objective", "batch_size", "precision")]
    for table in ("encoder", "decoder"):
        lines += [f"{table}.{key} = {json.dumps(value)}" for key, value in fields[table].items()]
    recipe.write_text("\n".join(["epochs = 2", *lines]))
    command = ["pretrain", "--recipe", str(recipe), "--data", str(folder), "--out", str(tmp_path / "run")]
    options = ["--probe", str(folder / "tones.csv"), "--probe-every", "1", "--device", "cpu"]
    assert run(*command, *options)[0] == 0
    assert [line["step"] for line in scores(tmp_path / "run")] == [0, 3, 6]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("probe/tones/linear")] == [0, 3, 6]
