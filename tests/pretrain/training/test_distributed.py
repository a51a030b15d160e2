"""Several processes train one network: the numbers of a single one, one sentence where one of them fails."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe
from hear_m2d.pretrain.training.distributed import Processes, StopRequest, init_distributed
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.state import States

TINY = Recipe(
    objective="m2d",
    optimizer=OptimizerConfig(base_lr=0.03),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    encoder=EncoderConfig(width=32, depth=2, heads=2, input_size=(80, 64)),
    momentum_start=0.99,
    momentum_end=0.999,
    batch_size=8,
    steps=20,
    precision="float64",
)
MSM_MAE = dataclasses.replace(TINY, objective="msm_mae", norm_pix_loss=False, mask_ratio=0.75)
RECIPES = {
    "m2d-float64": TINY,
    "m2d-float64-batch_norm": dataclasses.replace(TINY, batch_norm_target=True),
    "m2d-float32": dataclasses.replace(TINY, precision="float32"),
    "msm_mae-float64": MSM_MAE,
    "msm_mae-float32": dataclasses.replace(MSM_MAE, precision="float32"),
}

# Several runs, one after another, in the same processes: starting these is what takes time.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.recipe import recipe_of_record
from hear_m2d.pretrain.training.loop import train
data = LogMelData(Path(sys.argv[1]))
for name, (fields, options) in json.loads(Path(sys.argv[2]).read_text()).items():
    recipe = recipe_of_record(fields, "test")
    train(recipe, data, Path(sys.argv[3]) / name, device="cpu", log_every=1, **options)
"""

# So slow that a signal finds it at work.
SLOWER = """
import time
from hear_m2d.pretrain.training.step import Trainer
step = Trainer.step
def slow(self, batch, **options):
    print("step", flush=True)
    time.sleep(0.2)
    return step(self, batch, **options)
Trainer.step = slow
"""

# The command as typed, in which process 1 fails at its fourth step.
FAILING = """
import os, signal, sys
from hear_m2d.cli import main
from hear_m2d.pretrain.training.step import Trainer
step, taken = Trainer.step, []
def broken(self, batch, **how):
    taken.append(1)
    if os.environ["RANK"] == "1" and len(taken) == 4:
        if sys.argv[1] == "raise":
            raise OSError(5, "Input/output error", "shard-00003.arrow")
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, **how)
Trainer.step = broken
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What SCRIPT runs: every recipe in whole batches, and one in parts of a batch."""
    path = tmp_path_factory.mktemp("jobs") / "jobs.json"
    runs = {name: (recipe.to_json(), {}) for name, recipe in RECIPES.items()}
    runs["parts"] = (TINY.to_json(), {"micro_batch_size": 3})
    path.write_text(json.dumps(runs))
    return path


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    for name, recipe in RECIPES.items():
        train(recipe, data, out / name, device="cpu", log_every=1)
    return out


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD", "MASTER"))}
    return clean | {"OMP_NUM_THREADS": "1", **more}


def torchrun(count, script, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [*command, script, *map(str, words)], env=environment(), capture_output=True, text=True, timeout=300
    )


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_losses_and_weights_of_one(
    count, alone, data, jobs, tmp_path, weights
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = torchrun(count, script, data.folder, jobs, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name in [*RECIPES, "parts"]:
        there = alone / ("m2d-float64" if name == "parts" else name)
        assert len(losses(tmp_path / name)) == 20
        tolerance = 1e-5 if "float32" in name else 1e-9
        np.testing.assert_allclose(losses(tmp_path / name), losses(there), rtol=0, atol=tolerance)
        if "float32" not in name:
            whole, shared = weights(there), weights(tmp_path / name)
            assert whole.keys() == shared.keys()
            for key, value in whole.items():
                torch.testing.assert_close(shared[key], value, rtol=0, atol=1e-9)


def test_parts_of_a_batch_give_the_losses_and_weights_of_the_whole(alone, data, tmp_path, weights):
    train(TINY, data, tmp_path / "parts", device="cpu", log_every=1, micro_batch_size=3)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(alone / "m2d-float64"), rtol=0, atol=1e-9)
    whole, parts = weights(alone / "m2d-float64"), weights(tmp_path / "parts")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-9)


@pytest.fixture
def start(data, tmp_path):
    """Start the command in two processes as a launcher does that leaves each one alone."""

    def call(how, *options):
        recipe = tmp_path / "recipe.toml"
        fields = TINY.to_json() | {"steps": 400}
        lines = [
            f"{name} = {json.dumps(v)}" for name, v in fields.items() if isinstance(v, str | int | float)
        ]
        for table in ("encoder", "decoder", "optimizer"):
            lines += [f"[{table}]", *(f"{name} = {json.dumps(v)}" for name, v in fields[table].items())]
        recipe.write_text("\n".join(lines).replace("True", "true"))
        words = ["pretrain", "--recipe", recipe, "--data", data.folder, "--out", tmp_path / "run"]
        words += ["--device", "cpu", "--log-every", 1, "--save-every", 2, *options]
        script = tmp_path / "failing.py"
        script.write_text(FAILING)
        launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        return [
            subprocess.Popen(
                [sys.executable, script, how, *map(str, words)],
                env=environment(**launcher, RANK=str(rank), LOCAL_RANK=str(rank)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    return call


def end(processes):
    outputs = [process.communicate(timeout=120) for process in processes]
    codes = [process.returncode for process in processes]
    errors = [
        line
        for _, error in outputs
        for line in re.split("[\r\n]", error)
        if line.startswith(("error", "stop"))
    ]
    assert not any("Traceback" in error for _, error in outputs), outputs
    return codes, errors


def test_an_error_in_one_process_ends_all_with_one_sentence(start):
    codes, errors = end(start("raise"))
    assert codes == [1, 1]
    assert len(errors) == 1
    assert "shard-00003.arrow" in errors[0]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_sentence_and_the_run_continues(start, tmp_path):
    codes, errors = end(start("kill"))
    assert codes == [1, -signal.SIGKILL]
    assert len(errors) == 1
    assert "another process of the run ended" in errors[0]
    assert States(tmp_path / "run").steps() == [2]


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_the_state_and_the_run_continues(alone, data, tmp_path):
    """torchrun hands the signal on; both processes stop after the same step."""
    script, jobs = tmp_path / "script.py", tmp_path / "jobs.json"
    script.write_text(SLOWER + SCRIPT)
    jobs.write_text(json.dumps({"run": (TINY.to_json(), {"save_every": 100})}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    command += [data.folder, jobs, tmp_path]
    words = [str(word) for word in command]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()  # a step was taken
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 1
    (step,) = States(tmp_path / "run").steps()
    assert 1 <= step < 20
    ended = torchrun(2, script, data.folder, jobs, tmp_path)
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone / "m2d-float64"), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_an_error_before_the_first_step_is_reported_once(start):
    codes, errors = end(start("never", "--batch-size", 3))
    assert sorted(codes) == [1, 2]
    assert len(errors) == 1
    assert "batch_size = 3 clips cannot be divided evenly among 2 processes" in errors[0]


def test_processes_share_a_batch_without_gap_or_overlap():
    parts = [Processes(rank=rank, count=4).share(8) for rank in range(4)]
    assert [n for part in parts for n in range(8)[part]] == list(range(8))
    with pytest.raises(ValueError, match="batch_size = 6 clips cannot be divided evenly among 4 processes"):
        Processes(rank=0, count=4).share(6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", ""),
        ("WORLD_SIZE", "abc"),
        ("LOCAL_RANK", "-1"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", "2950O"),
    ],
)
def test_a_launchers_variable_that_cannot_be_used_is_named(monkeypatch, name, value):
    whole = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for variable, text in {**whole, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(
        ValueError, match=re.escape(f"{name} is {value!r}") + ".*start the command with torchrun"
    ):
        init_distributed()


def test_sigterm_interrupts_a_probe_and_the_run_is_asked_to_stop():
    with StopRequest(Processes()).heard() as stop:
        ended = []

        def probe():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            ended.append(1)

        stop.run_interruptible(probe)
        assert not ended
        assert stop.asked()
        stop.run_interruptible(lambda: ended.append(2))  # no new work after SIGTERM
        assert not ended


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "eager"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
    ],
)
def test_accelerates_environment_does_not_reach_the_arithmetic(
    monkeypatch, name, value, data, tmp_path, weights
):
    recipe = dataclasses.replace(TINY, steps=3)
    train(recipe, data, tmp_path / "plain", device="cpu", log_every=1)
    monkeypatch.setenv(name, value)
    train(recipe, data, tmp_path / "run", device="cpu", log_every=1)
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    whole, other = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(other[key], value) for key, value in whole.items())
    assert os.environ[name] == value


def test_sigterm_is_heard_and_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(Processes()).heard() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
    assert signal.getsignal(signal.SIGTERM) is before
