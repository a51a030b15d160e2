"""Fine-tuning runs: they learn, continue bit for bit after a kill, and leave a classifier that works."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.evaluation.finetune.network import make_network
from hear_m2d.evaluation.finetune.recipe import read_recipe
from hear_m2d.evaluation.finetune.results import report, summary
from hear_m2d.evaluation.finetune.train import (
    finetune_run,
    learning_rate,
    make_optimizer,
    run_splits,
    soft_loss,
)
from hear_m2d.evaluation.linear.datasets import read_labeled
from hear_m2d.evaluation.linear.protocol import classifier_loss
from hear_m2d.utils.errors import InputError

pytest.importorskip("accelerate")
SMALL = [
    "epochs=3", "warmup_epochs=1.0", "batch_size=8", "optimizer=adamw", "learning_rate=3e-3",
    "mixup=0.3", "frequency_mask=8", "time_mask=8", "unit_s=0.8",
]  # fmt: skip


@pytest.fixture
def labeled(tiny_tasks, tmp_path):
    return read_labeled(tiny_tasks.scene_multiclass(tmp_path / "tasks"), 16000)


def run(out, labeled, checkpoint, recipe=None, seed=43, **settings):
    recipe = recipe or replace(read_recipe("default", SMALL), **settings)
    (splits,) = run_splits(labeled)
    return finetune_run(
        out, labeled, splits, recipe, seed=seed, model_path=str(checkpoint), device=torch.device("cpu")
    )


def test_the_rate_warms_up_from_zero_and_its_cosine_spans_all_epochs():
    recipe = read_recipe("esc50")
    assert learning_rate(recipe, 0) == 0
    assert learning_rate(recipe, 2.5) == pytest.approx(0.25)
    assert learning_rate(recipe, 5) == pytest.approx(0.5 * 0.5 * (1 + np.cos(np.pi * 5 / 200)))
    assert learning_rate(recipe, 100) == pytest.approx(0.25)
    assert learning_rate(recipe, 200) == pytest.approx(1e-7)


def test_the_optimizers_are_the_published_ones(our_checkpoint):
    for name, kind in (("as2m", "Lars"), ("esc50", "SGD"), ("vc1", "AdamW")):
        recipe = replace(read_recipe(name), input_frames=None)
        network = make_network(our_checkpoint, recipe, ("a", "b"), seed=43)
        optimizer = make_optimizer(network, recipe)
        assert type(optimizer).__name__ == kind
        (group,) = optimizer.param_groups
        if kind == "AdamW":
            assert (group["betas"], group["amsgrad"], group["weight_decay"]) == ((0.9, 0.95), True, 1e-4)
        else:
            assert (group["momentum"], group["weight_decay"]) == (0.9, 0)
        trained = {id(parameter) for parameter in group["params"]}
        frozen = network.model.encoder.patch_embed.proj.weight
        assert (id(frozen) in trained) == (name != "esc50")
        weights = network.model.head.linear.weight
        assert weights.shape[1] == (240 if name == "vc1" else 48)  # columns, or the mean over patches
        assert weights.std().item() == pytest.approx(0.01, rel=0.3)


def test_the_loss_of_hard_targets_is_that_of_linear_evaluation():
    logits, y = torch.randn(6, 5), torch.tensor([0, 1, 4, 2, 2, 3])
    torch.testing.assert_close(soft_loss(logits, torch.eye(5)[y], several=False), classifier_loss(logits, y))


def test_logits_are_those_of_classify_and_do_not_depend_on_dropping_in_evaluation(our_checkpoint):
    recipe = read_recipe("default", SMALL)
    for changed in (recipe, replace(recipe, patch_drop=0.0)):
        network = make_network(our_checkpoint, changed, ("a", "b", "c"), seed=43).eval()
        audio = 0.1 * torch.randn(3, 25000, generator=torch.Generator().manual_seed(0))  # two windows
        x = (network.model.frontend(audio) - network.model.config.mean) / network.model.config.std
        with torch.no_grad():
            torch.testing.assert_close(
                network(x[:, None]), network.model.classify(audio), atol=1e-4, rtol=1e-4
            )


def test_longer_inputs_are_one_window_with_resampled_positions(our_checkpoint):
    recipe = read_recipe("default", [*SMALL, "input_frames=201"])
    network = make_network(our_checkpoint, recipe, ("a", "b"), seed=43).eval()
    assert network.model.config.encoder.input_size == (80, 201)
    assert network.model.encoder.pos_embed.shape[1] == 1 + 5 * 12
    with torch.no_grad():
        x = torch.randn(2, 1, 80, 201)
        # What does not fill a patch is dropped.
        torch.testing.assert_close(network(x), network(x[..., :192]))


def test_a_run_learns_and_its_classifier_gives_the_reported_score(labeled, our_checkpoint, tmp_path):
    result = run(tmp_path / "run", labeled, our_checkpoint, epochs=12)
    assert (result["metric"], result["selected_on"]) == ("accuracy", "valid")
    assert result["best"]["score"] >= 0.5  # of four classes
    for name, which in (("checkpoint", "last"), ("best", "best")):
        model = hear_m2d.load_model(tmp_path / "run" / f"{name}.safetensors")
        assert model.labels == labeled.classes
        right = []
        for clip in labeled.clips:
            if clip.split == "test":
                audio = torch.from_numpy(read_audio(clip.path, 16000))[None, : round(0.8 * 16000)]
                right.append(labeled.classes[model.classify(audio).argmax()] == clip.labels[0])
        assert np.mean(right) == pytest.approx(result[which]["score"])
    assert model.config.training["finetuned"]["set"] == labeled.name
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not list((tmp_path / "run").glob("state-*"))
    assert (
        run(tmp_path / "run", labeled, our_checkpoint, epochs=12) == result
    )  # it is whole: nothing is trained


def test_another_run_in_the_same_folder_is_refused(labeled, our_checkpoint, tmp_path):
    run(tmp_path / "run", labeled, our_checkpoint, epochs=1)
    with pytest.raises(ValueError, match="belongs to another run: seed is 43 there, 44 now"):
        run(tmp_path / "run", labeled, our_checkpoint, epochs=1, seed=44)
    with pytest.raises(ValueError, match=r"belongs to another run: epochs is 1 there, 2 now\."):
        run(tmp_path / "run", labeled, our_checkpoint, epochs=2)


def test_several_labels_weighted_drawing_and_log_mel_mixup_train(tiny_tasks, our_checkpoint, tmp_path):
    labeled = read_labeled(tiny_tasks.scene_multilabel(tmp_path / "tasks"), 16000)
    result = run(
        tmp_path / "run", labeled, our_checkpoint,
        sampler="weighted", epoch_clips=16, mixup_on="log_mel", optimizer="lars", patch_drop_rule="paper",
    )  # fmt: skip
    assert result["metric"] == "mAP"
    assert 0 < result["last"]["score"] <= 1


def interrupt_after(steps):
    """A `tick` that kills this process after so many steps."""
    return f"""
import os, signal
count = 0
def tick(n):
    global count
    count += n
    if count >= {steps}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from hear_m2d.evaluation.finetune.recipe import read_recipe
from hear_m2d.evaluation.finetune.train import finetune_run, run_splits
from hear_m2d.evaluation.linear.datasets import read_labeled
out, task, checkpoint, *settings = sys.argv[1:]
labeled = read_labeled(Path(task), 16000)
finetune_run(Path(out), labeled, run_splits(labeled)[0], read_recipe("default", settings), seed=43,
             model_path=checkpoint, device=torch.device("cpu"), tick=tick)
"""


@pytest.mark.kill
@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("steps", [1, 4, 5, 8])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_killed_run_continues_bit_for_bit(steps, optimizer, tiny_tasks, our_checkpoint, tmp_path):
    task = tiny_tasks.scene_multiclass(tmp_path / "tasks")
    settings = [*SMALL, f"optimizer={optimizer}"]

    def child(out, tick):
        words = [str(out), str(task), str(our_checkpoint), *settings]
        return subprocess.run([sys.executable, "-c", tick + CHILD, *words], check=False).returncode

    plain = "def tick(n): pass\n"
    assert child(tmp_path / "whole", plain) == 0
    assert child(tmp_path / "killed", interrupt_after(steps)) == -signal.SIGKILL
    assert child(tmp_path / "killed", plain) == 0
    for name in ("checkpoint.safetensors", "best.safetensors", "metrics.jsonl", "result.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_sigterm_saves_the_state_and_the_run_continues_bit_for_bit(
    optimizer, labeled, our_checkpoint, tmp_path
):
    from hear_m2d.pretrain.training.distributed import StoppedError

    recipe = read_recipe("default", [*SMALL, f"optimizer={optimizer}"])
    (splits,) = run_splits(labeled)
    done = []

    def tick(count):
        done.append(count)
        if sum(done) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    common = {"seed": 43, "model_path": str(our_checkpoint), "device": torch.device("cpu")}
    with pytest.raises(StoppedError, match="at step 4: the same command continues"):
        finetune_run(tmp_path / "a", labeled, splits, recipe, **common, tick=tick)
    assert (tmp_path / "a/state-4.safetensors").exists()
    first = finetune_run(tmp_path / "a", labeled, splits, recipe, **common)
    second = finetune_run(tmp_path / "b", labeled, splits, recipe, **common)
    assert first == second
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def command(run):
    return lambda *words: run("finetune", *words, "--device", "cpu")


def test_the_command_runs_folds_and_seeds_and_says_that_the_test_split_chose(
    command, tiny_tasks, our_checkpoint, tmp_path
):
    task = tiny_tasks.folds(tmp_path)
    settings = [word for setting in [*SMALL, "epochs=1"] for word in ("--set", setting)]
    words = (task, "--model", our_checkpoint, "--out", tmp_path / "out", "--seeds", "43,44", *settings)
    code, out, _ = command(*words, "--dry-run")
    assert code == 0
    assert "3 folds x 2 seeds, 18 steps; the best epoch is chosen on the test split" in out
    assert "epochs=1, " in out
    assert "FinetuneRecipe" not in out
    assert not (tmp_path / "out").exists()
    code, out, err = command(*words, "--compare")
    assert code == 0, err
    assert "the best epoch was chosen on the test split" in out
    assert "last epoch: test accuracy" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results["runs"]) == 6
    assert results["selected_on"] == "test"
    assert results["best"]["score"] >= results["last"]["score"]
    assert (tmp_path / "out/seed-44/fold02/checkpoint.safetensors").exists()
    code, out, _ = command(*words, "--fold", "fold01")
    assert code == 0
    assert "1 of 3 folds: fold01" in out


def test_a_score_with_other_settings_is_marked_among_the_published_figures(labeled):
    run = {"fold": "test", "selected_on": "valid", "last": {"score": 0.4}, "best": {"score": 0.5}}
    for words, seeds, changes in (
        ([], [43, 44, 45], []),
        (["epochs=5"], [43], ["epochs=5", "seeds 43"]),
    ):
        results = summary(
            [{**run, "seed": seed} for seed in seeds],
            replace(labeled, published="spcv2", notes=()),
            recipe="spcv2",
            settings=read_recipe("spcv2", words),
            model="mine.safetensors",
        )
        assert results["changes"] == changes
        lines = report(results, compare=True)
        assert any(line.startswith("> mine †") for line in lines) == bool(changes)


def test_bad_input_is_one_line_and_exit_code_2(command, tiny_tasks, our_checkpoint, tmp_path):
    task = tiny_tasks.folds(tmp_path)
    for words, says in (
        ((task, "--model", our_checkpoint, "--set", "epoch=1"), "Did you mean epochs"),
        ((task, "--model", our_checkpoint, "--fold", "fold9"), "unknown fold"),
        ((task, "--model", tmp_path / "nothing.safetensors"), "no checkpoint"),
        ((tmp_path / "nowhere", "--model", our_checkpoint), "there is no"),
    ):
        code, out, err = command(*words, "--out", tmp_path / "out")
        assert (code, out) == (2, ""), err
        assert says in err.strip().splitlines()[-1]


def test_a_refused_recipe_leaves_the_folder_to_the_corrected_one(labeled, our_checkpoint, tmp_path):
    (splits,) = run_splits(labeled)
    common = {"seed": 43, "model_path": str(our_checkpoint), "device": torch.device("cpu")}
    refused = read_recipe("default", [*SMALL, "input_frames=1"])
    with pytest.raises(InputError, match="do not tile an input of 80x1"):
        finetune_run(tmp_path / "out", labeled, splits, refused, **common)
    finetune_run(tmp_path / "out", labeled, splits, read_recipe("default", [*SMALL, "epochs=1"]), **common)
