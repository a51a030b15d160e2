"""Runs that are killed, or whose disk is full, at chosen moments; what they end with equals the whole run's.

`make test-kill` runs all of these, `make test` three kills.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hear_m2d.checkpoint.format import read_tensors
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe
from hear_m2d.pretrain.training.loop import train
from hear_m2d.pretrain.training.state import STATE_KEY, States

pytestmark = pytest.mark.kill

RECIPE = Recipe(
    objective="m2d",
    encoder=EncoderConfig(width=32, depth=2, heads=2, input_size=(80, 64)),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    optimizer=OptimizerConfig(base_lr=0.03),
    momentum_start=0.99,
    momentum_end=0.999,
    batch_size=8,
    steps=24,
    precision="float32",
)

# A run that ends itself, or meets an error, at a chosen moment. Moments are counted: "log 5" is its fifth
# line in the log, "file 3" the third operation on a file while states are written: open; write and half of it
# written, for the header and for the tensors; fsync, replace; open, fsync and close of the folder; unlink of
# an old state.
SCRIPT = """
import errno, json, os, signal, sys
from pathlib import Path
from hear_m2d.pretrain.training import run_folder as run
from hear_m2d.pretrain.training import state
from hear_m2d.pretrain.training import loop
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.recipe import recipe_of_record
from hear_m2d.pretrain.training.step import Trainer

data, out, fields, moment, number, how, workers = sys.argv[1:]
counts = {}
saving = []

def reached(name):
    counts[name] = counts.get(name, 0) + 1
    if name != moment or counts[name] != int(number):
        return
    print("reached", name, counts[name], flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

def before(owner, attribute, name, when=lambda *a, **k: True):
    original = getattr(owner, attribute)
    def counted(*args, **kwargs):
        if when(*args, **kwargs):
            reached(name)
        return original(*args, **kwargs)
    setattr(owner, attribute, counted)

def in_run(*args, **kwargs):
    return bool(saving)

before(run.RunFolder, "known", "known")
before(run.RunFolder, "begin", "begin")
before(run.RunFolder, "cut_log", "cut")
before(run.RunFolder, "save_objective", "objective")
before(loop, "save_checkpoint", "checkpoint")
before(state.States, "newest", "newest")
before(state.States, "load", "load")
before(run.RunFolder, "log", "log")
before(Trainer, "step", "step")
for name in ("open", "fsync", "replace", "unlink", "close"):
    before(os, name, "file", in_run)

open_path = Path.open
class Counted:
    def __init__(self, file):
        self.file = file
    def write(self, part):
        reached("file")
        half = len(part) // 2
        self.file.write(part[:half])
        self.file.flush()
        reached("file")  # half of it is on the disk
        self.file.write(part[half:])
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
def counted_open(*args, **kwargs):
    if not saving:
        return open_path(*args, **kwargs)
    reached("file")
    return Counted(open_path(*args, **kwargs))
Path.open = counted_open

save = state.States.save
def counted_save(self, *args):
    saving.append(1)
    try:
        save(self, *args)
    finally:
        saving.clear()
        if moment == "file":
            print("operations", counts.get("file", 0), flush=True)
state.States.save = counted_save

try:
    recipe = recipe_of_record(json.loads(fields), "test")
    loop.train(recipe, LogMelData(Path(data)), Path(out), device="cpu", log_every=1, save_every=4,
               workers=int(workers))
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing happens to: its losses and final weights."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(RECIPE, data, out, device="cpu", log_every=1, save_every=4)
    return result(out)


def result(out):
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses, read_tensors(States(out).path(RECIPE.steps), STATE_KEY)[0]


def same(actual, expected):
    assert actual[0] == expected[0]
    assert actual[1].keys() == expected[1].keys()
    assert all(torch.equal(actual[1][name], expected[1][name]) for name in expected[1])


@pytest.fixture
def start(data, tmp_path):
    def call(moment, number, how="kill", workers=0):
        command = [sys.executable, "-c", SCRIPT, data.folder, tmp_path / "run", json.dumps(RECIPE.to_json())]
        command += [moment, number, how, workers]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        # Files: a pipe would be open as long as a loader process outlives its parent.
        with (tmp_path / "out").open("w") as out, (tmp_path / "error").open("w") as error:
            return subprocess.Popen(
                [str(word) for word in command], stdout=out, stderr=error, env=os.environ | threads
            )

    return call


@pytest.fixture
def run_until(start, tmp_path):
    """Run until the moment; return the exit code and what was said."""

    def call(*moment, **options):
        process = start(*moment, **options)
        process.wait(timeout=200)
        out, error = (tmp_path / "out").read_text(), (tmp_path / "error").read_text()
        assert "reached" in out, (moment, error)
        return process.returncode, out, error

    return call


@pytest.mark.parametrize(
    ("moment", "number", "workers"),
    [
        ("log", 7, 2),  # between steps, mid-epoch, with loader processes
        ("file", 5, 0),  # while the first state is written: half of its tensors are on the disk
        pytest.param("newest", 1, 0),  # at start-up
    ],
)
def test_a_killed_run_continues_bit_for_bit(moment, number, workers, run_until, whole, data, tmp_path):
    code, _, _ = run_until(moment, number, workers=workers)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    train(RECIPE, data, tmp_path / "run", device="cpu", log_every=1, save_every=4, workers=workers)
    same(result(tmp_path / "run"), whole)


TWENTY = [
    ("known", 1), ("begin", 1), ("cut", 1), ("step", 1), ("log", 1), ("log", 3), ("file", 1), ("file", 2),
    ("file", 3), ("file", 6), ("file", 8), ("load", 1), ("step", 2), ("file", 7), ("log", 6), ("newest", 1),
    ("file", 10), ("file", 5), ("objective", 1), ("checkpoint", 1),
]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_moments_ends_as_if_it_had_not_been(run_until, whole, data, tmp_path):
    """One after another on the same run: each start continues what the kill before it left."""
    for moment in TWENTY:
        code, _, _ = run_until(*moment)
        assert code == -signal.SIGKILL, moment
    train(RECIPE, data, tmp_path / "run", device="cpu", log_every=1, save_every=4)
    same(result(tmp_path / "run"), whole)


@pytest.mark.slow
def test_a_run_that_is_killed_from_outside_at_any_time_continues(start, whole, data, tmp_path):
    """No chosen moments: SIGKILL after more and more seconds, from the start of Python on."""
    for delay in (0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        process = start("none", 0)
        time.sleep(delay)
        process.kill()
        process.wait()
    train(RECIPE, data, tmp_path / "run", device="cpu", log_every=1, save_every=4)
    same(result(tmp_path / "run"), whole)


@pytest.mark.slow
def test_a_save_that_fails_at_any_operation_keeps_the_state_before_it(
    run_until, start, whole, data, tmp_path
):
    """Each operation of the second save fails once, as on a full disk: the first state stays."""
    assert start("file", 0).wait(timeout=200) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    counts = [int(line.split()[1]) for line in lines if line.startswith("operations")]
    first, second = counts[:2]
    assert second - first >= 8  # open, write, fsync, replace, the folder's open and fsync, …
    for number in range(first + 1, second + 1):
        run = tmp_path / "run"
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        code, message, error = run_until("file", number, how="fail")
        survived = code == 0  # an operation that may fail: tidying up, syncing a folder
        if not survived:
            assert "WorkFailedError" in error, error
            assert "No space left on device" in error
            assert 4 in States(run).steps()
            assert not list(run.glob(".state*")), message
        train(RECIPE, data, run, device="cpu", log_every=1, save_every=4)
        same(result(run), whole)


def test_sigterm_saves_the_state_first(run_until, whole, data, tmp_path):
    code, _, error = run_until("step", 7, how="term", workers=1)
    assert code == 1
    assert "StoppedError stopped by SIGTERM after 7 of 24 steps" in error
    assert States(tmp_path / "run").steps() == [4, 7]
    train(RECIPE, data, tmp_path / "run", device="cpu", log_every=1, save_every=4)
    same(result(tmp_path / "run"), whole)
