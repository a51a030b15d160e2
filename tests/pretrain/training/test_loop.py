"""The loop: it learns, resumes bit for bit, refuses another run's folder, and stops where the loss breaks."""

import dataclasses
import errno
import json
import logging
import weakref

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.data.crops import Crops
from hear_m2d.pretrain.data.loader import batches
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe, replace_fields
from hear_m2d.pretrain.training import loop as module
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.pace import steps_within
from hear_m2d.pretrain.training.run_folder import RunFolder
from hear_m2d.pretrain.training.trackers import Trackers
from hear_m2d.utils.errors import WorkFailedError
from hear_m2d.utils.files import lock_folder

TINY = Recipe(
    objective="m2d",
    optimizer=OptimizerConfig(base_lr=0.03),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    encoder=EncoderConfig(width=32, depth=2, heads=2, input_size=(80, 64)),
    momentum_start=0.99,
    momentum_end=0.999,
    batch_size=8,
    steps=12,
    precision="float32",
)
OBJECTIVES = {
    "m2d": TINY,
    "msm_mae": dataclasses.replace(TINY, objective="msm_mae", norm_pix_loss=False, mask_ratio=0.75),
}


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls_and_the_checkpoint_embeds(objective, data, tmp_path):
    recipe = dataclasses.replace(OBJECTIVES[objective], steps=40)
    checkpoint = train(recipe, data, tmp_path / "run", device="cpu", log_every=1)
    curve = losses(tmp_path / "run")
    assert len(curve) == 40
    assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])
    model = hear_m2d.load_model(checkpoint)
    assert (model.config.kind, model.config.mean, model.config.std) == (objective, data.mean, data.std)
    assert model.config.training["steps"] == 40
    assert hear_m2d.get_scene_embeddings(torch.randn(2, 16000) * 0.1, model).shape == (2, 160)
    assert any((tmp_path / "run" / "tensorboard").rglob("events*"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("stop", [3, 8])
def test_an_interrupted_run_continues_bit_for_bit(objective, stop, data, tmp_path, monkeypatch, weights):
    recipe = OBJECTIVES[objective]
    train(recipe, data, tmp_path / "whole", device="cpu", log_every=1)

    append = RunFolder.log

    def die(self, line):
        append(self, line)
        if line["step"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", die)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "cut", device="cpu", log_every=1, save_every=2)
    monkeypatch.setattr(RunFolder, "log", append)
    train(recipe, data, tmp_path / "cut", device="cpu", log_every=1, save_every=2)

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("target_init", ["random", "online"])
def test_the_record_of_a_run_says_how_the_target_began(target_init, data, tmp_path):
    encoder = train(dataclasses.replace(OBJECTIVES["msm_mae"], steps=0), data, tmp_path / "mae", device="cpu")
    recipe = dataclasses.replace(TINY, steps=2, init=str(encoder), target_init=target_init)
    train(recipe, data, tmp_path / "run", device="cpu")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    kind = "as a copy of the encoder" if target_init == "online" else "at random"
    assert sum(f"it starts {kind}" in note for note in record["start"]) == 1
    assert train(recipe, data, tmp_path / "run", device="cpu").exists()  # no setting that differs


@pytest.mark.parametrize("what", ["log", "save_objective"])
def test_a_full_disk_is_reported_also_when_no_state_is_written(what, data, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, what, full)
        with pytest.raises(WorkFailedError, match=r"No space left on device.*The same command continues"):
            train(TINY, data, tmp_path / "run", device="cpu", log_every=4)
    assert train(TINY, data, tmp_path / "run", device="cpu", log_every=4).exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_can_no_longer_be_read_is_a_work_failed_error(workers, data, tmp_path, monkeypatch):
    def away(self, keys):
        raise ConnectionError("http://there/data cannot be fetched: 503.")

    monkeypatch.setattr(Crops, "__getitems__", away)
    with pytest.raises(
        WorkFailedError, match=r"^http://there/data cannot be .* 503\. The same command conti"
    ):
        train(TINY, data, tmp_path / "run", device="cpu", workers=workers)


def test_a_finished_run_is_left_alone(data, tmp_path):
    checkpoint = train(TINY, data, tmp_path / "run", device="cpu")
    before = checkpoint.stat().st_mtime_ns
    assert train(TINY, data, tmp_path / "run", device="cpu") == checkpoint
    assert checkpoint.stat().st_mtime_ns == before


def test_the_folder_of_another_run_is_refused_with_the_differing_field(data, tmp_path):
    train(dataclasses.replace(TINY, steps=1), data, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match=r"another run: recipe\.mask_ratio is 0\.7 there, 0\.6 now"):
        train(dataclasses.replace(TINY, steps=1, mask_ratio=0.6), data, tmp_path / "run", device="cpu")


def test_another_description_is_the_same_run(data, tmp_path):
    train(dataclasses.replace(TINY, steps=1), data, tmp_path / "run", device="cpu")
    again = dataclasses.replace(TINY, steps=1, description="The same in other words.")
    assert train(again, data, tmp_path / "run", device="cpu").exists()


def test_force_continues_with_other_settings_and_records_what_changed(data, tmp_path, caplog):
    out = tmp_path / "run"
    train(TINY, data, out, device="cpu", log_every=1)
    before = losses(out)
    longer = replace_fields(TINY, {"steps": 16, "optimizer.base_lr": 0.01})
    with pytest.raises(
        ValueError, match=r"base_lr is 0\.03 there, 0\.01 now.*steps is 12 there, 16 now.*--force"
    ):
        train(longer, data, out, device="cpu", log_every=1)
    assert (out / "checkpoint.safetensors").exists()
    with caplog.at_level(logging.INFO):
        checkpoint = train(longer, data, out, device="cpu", log_every=1, force=True)
    assert (
        "the schedules now cover 16 steps: after step 12 the learning rate changes from 0 to" in caplog.text
    )
    assert losses(out)[:12] == before
    assert len(losses(out)) == 16
    record = json.loads((out / "run.json").read_text())
    assert record["recipe"]["optimizer"]["base_lr"] == 0.01
    assert record["history"] == [
        {
            "step": 12,
            "changed": {
                "recipe.optimizer.base_lr": [0.03, 0.01],
                "recipe.steps": [12, 16],
                "steps": [12, 16],
            },
        }
    ]
    assert hear_m2d.load_model(checkpoint).config.training["steps"] == 16
    assert hear_m2d.load_model(out / "checkpoint-12.safetensors").config.training["steps"] == 12
    assert train(longer, data, out, device="cpu") == checkpoint  # the new settings are now the run's own


def test_the_trackers_get_the_step_of_a_continued_run(data, tmp_path, monkeypatch):
    message = []
    monkeypatch.setattr(
        module, "Trackers", lambda *args, step: message.append(step) or Trackers(*args, step=step)
    )
    for steps in (1, 2):
        recipe = dataclasses.replace(TINY, steps=steps)
        train(recipe, data, tmp_path / "run", device="cpu", force=True)
    assert message == [0, 1]


def test_a_run_cannot_be_forced_to_end_before_where_it_is_or_into_another_network(data, tmp_path):
    train(TINY, data, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="at step 12 already: it cannot end at 5"):
        train(dataclasses.replace(TINY, steps=5), data, tmp_path / "run", device="cpu", force=True)
    record = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match="network of other sizes"):
        train(replace_fields(TINY, {"encoder.width": 64}), data, tmp_path / "run", device="cpu", force=True)
    assert (tmp_path / "run" / "run.json").read_text() == record
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_folder_of_something_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        train(TINY, data, tmp_path, device="cpu")


def test_no_steps_write_the_untrained_network(data, tmp_path):
    checkpoint = train(dataclasses.replace(TINY, steps=0), data, tmp_path / "run", device="cpu")
    again = train(dataclasses.replace(TINY, steps=0), data, tmp_path / "again", device="cpu")
    assert checkpoint.read_bytes() == again.read_bytes()
    assert hear_m2d.load_model(checkpoint).config.training["steps"] == 0


def test_minutes_choose_the_steps_and_a_resumed_run_keeps_them(data, tmp_path):
    train(TINY, data, tmp_path / "run", device="cpu", minutes=0.01)
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    assert steps >= 1
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    train(TINY, data, tmp_path / "run", device="cpu", minutes=0.01)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == steps


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), 0.0, -1.0])
def test_minutes_that_are_not_a_positive_number_are_refused(minutes, data, tmp_path):
    with pytest.raises(ValueError, match=r"minutes = .*: give a number above 0"):
        train(TINY, data, tmp_path / "run", device="cpu", minutes=minutes)


def test_other_minutes_in_the_same_folder_are_refused(data, tmp_path):
    train(dataclasses.replace(TINY, steps=1), data, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="minutes is None there, 5 now"):
        train(dataclasses.replace(TINY, steps=1), data, tmp_path / "run", device="cpu", minutes=5)


def test_another_run_is_refused_before_its_minutes_are_timed_and_forced_after(data, tmp_path, monkeypatch):
    one = dataclasses.replace(TINY, steps=1)
    train(one, data, tmp_path / "run", device="cpu")
    timed = []
    monkeypatch.setattr(module, "steps_within", lambda *args: timed.append(args) or 3)
    other = dataclasses.replace(one, mask_ratio=0.6)
    with pytest.raises(
        ValueError, match=r"minutes is None there, 5 now; recipe\.mask_ratio is 0\.7 there, 0\.6 now\."
    ):
        train(other, data, tmp_path / "run", device="cpu", minutes=5)
    assert not timed
    train(other, data, tmp_path / "run", device="cpu", minutes=5, force=True)
    assert len(timed) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["minutes"], record["steps"]) == (5, 3)
    assert record["history"][0]["changed"]["steps"] == [1, 3]


def test_the_copy_that_was_timed_is_gone_when_training_begins(data, tmp_path, monkeypatch):
    copies, alive = [], []

    def timed(seconds, trial, *args):
        steps = steps_within(seconds, trial, *args)
        weight = next(trial.objective.parameters())
        copies.extend(map(weakref.ref, (trial, trial.objective, trial.optimizer, weight)))
        return steps

    def begun(*args, **kwargs):
        alive.extend(copy() for copy in copies)
        return batches(*args, **kwargs)

    monkeypatch.setattr(module, "steps_within", timed)
    monkeypatch.setattr(module, "batches", begun)
    train(TINY, data, tmp_path / "run", device="cpu", minutes=0.001)
    assert alive == [None] * 4


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_record_of_something_else_is_refused_by_name(text, data, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        train(TINY, data, tmp_path, device="cpu", minutes=1)


def test_a_file_in_the_folders_place_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        train(TINY, data, tmp_path / "file", device="cpu")


def test_epochs_of_fewer_clips_than_a_batch_are_refused(data, tmp_path):
    recipe = dataclasses.replace(TINY, steps=None, epochs=2, batch_size=64)
    with pytest.raises(ValueError, match="12 clips, fewer than one batch of 64"):
        train(recipe, data, tmp_path / "run", device="cpu")


def test_a_loss_that_breaks_stops_the_run_and_keeps_the_last_good_state(data, tmp_path, weights):
    recipe = replace_fields(TINY, {"optimizer.base_lr": 1e30, "optimizer.clip_grad": 0.0, "steps": 30})
    with pytest.raises(WorkFailedError, match=r"smaller optimizer\.base_lr"):
        train(recipe, data, tmp_path / "run", device="cpu", log_every=100, save_every=1)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    state = weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for name, tensor in state.items() if name.startswith("optimizer."))


def test_a_loss_that_diverges_stops_the_run(data, tmp_path):
    recipe = replace_fields(
        OBJECTIVES["msm_mae"],
        {"optimizer.base_lr": 300.0, "optimizer.clip_grad": 0.0, "steps": 200, "optimizer.warmup": 0.0},
    )
    with pytest.raises(
        WorkFailedError, match=r"the loss is .* at the first line of the log: the run stopped"
    ):
        train(recipe, data, tmp_path / "run", device="cpu", log_every=1)
    assert all(np.isfinite(losses(tmp_path / "run")))


def test_a_diverged_run_without_a_saved_state_says_so(data, tmp_path):
    recipe = replace_fields(TINY, {"optimizer.base_lr": 1e30, "optimizer.clip_grad": 0.0, "steps": 30})
    with pytest.raises(WorkFailedError, match="no state was saved yet"):
        train(recipe, data, tmp_path / "run", device="cpu", log_every=10)


@pytest.mark.slow
def test_compiled_blocks_give_the_losses_of_eager_ones_and_are_compiled_once(data, tmp_path):
    from torch._dynamo.utils import counters

    train(TINY, data, tmp_path / "eager", device="cpu", log_every=1)
    torch._dynamo.reset()
    counters.clear()
    train(dataclasses.replace(TINY, compile=True), data, tmp_path / "run", device="cpu", log_every=1)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "eager"), rtol=0, atol=1e-5)
    # The encoder's, the target's (without gradients) and the predictor's blocks; nothing more in later steps.
    assert counters["stats"]["unique_graphs"] == 3


def test_data_of_another_front_end_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"32000"):
        train(dataclasses.replace(TINY, sample_rate=32000), data, tmp_path / "run", device="cpu")


def test_bfloat16_follows_float32(data, tmp_path):
    train(TINY, data, tmp_path / "a", device="cpu", log_every=1)
    train(dataclasses.replace(TINY, precision="bfloat16"), data, tmp_path / "b", device="cpu", log_every=1)
    exact, rounded = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.1)


def test_masks_are_functions_of_seed_and_step():
    assert torch.equal(mask_noise(1, 7, 4, 20), mask_noise(1, 7, 4, 20))
    assert not torch.equal(mask_noise(1, 7, 4, 20), mask_noise(1, 8, 4, 20))
    assert not torch.equal(mask_noise(1, 7, 4, 20), mask_noise(2, 7, 4, 20))


def test_training_leaves_the_callers_random_state_alone(data, tmp_path):
    before = torch.get_rng_state()
    train(dataclasses.replace(TINY, steps=2), data, tmp_path / "run", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_run_at_work_in_the_same_folder_is_refused(data, tmp_path):
    with lock_folder(tmp_path / "run"), pytest.raises(ValueError, match="another process is at work"):
        train(TINY, data, tmp_path / "run", device="cpu")


def test_temporary_files_of_a_killed_save_are_removed(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hear-m2d-0.tmp").write_text("{")
    (tmp_path / "run" / ".DS_Store").write_text("")
    train(dataclasses.replace(TINY, steps=1), data, tmp_path / "run", device="cpu")
    assert sorted(p.name for p in (tmp_path / "run").glob(".*")) == [".DS_Store", ".lock"]
