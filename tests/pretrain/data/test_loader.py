"""Batches of a run: what is told where a loader process ends."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from hear_m2d.pretrain.data.crops import StepBatches
from hear_m2d.pretrain.data.loader import batches
from hear_m2d.utils.errors import WorkFailedError


class Deadly(Dataset):
    """Its process ends as one does that takes too much memory."""

    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(Dataset):
    def __getitem__(self, key):
        raise RuntimeError("a fault of our own")


class Missing(Dataset):
    """Its message has a line break, as those of servers do."""

    def __init__(self, kind):
        self.kind = kind

    def __getitem__(self, key):
        raise self.kind("a.npy is missing:\neach file needs one")


def first_batch(items, workers=1):
    steps = StepBatches(0, 2, batch_size=2, n_clips=4, seed=0)
    options = {"share": slice(0, 2), "patches": 4, "device": torch.device("cpu"), "workers": workers}
    return next(batches(items, steps, **options))


def test_a_loader_process_that_is_killed_is_told_in_a_sentence():
    with pytest.raises(WorkFailedError, match=r"a loader process ended .*The same command continues"):
        first_batch(Deadly())


def test_an_error_of_a_loader_process_is_no_death():
    with pytest.raises(RuntimeError, match="a fault of our own"):
        first_batch(Broken())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [ValueError, ConnectionError, WorkFailedError])
def test_an_error_of_a_loader_process_has_its_own_message_only(kind, workers):
    with pytest.raises(kind) as raised:
        first_batch(Missing(kind), workers)
    assert type(raised.value) is kind
    assert str(raised.value) == "a.npy is missing:\neach file needs one"


def test_the_traceback_of_a_loader_process_is_the_cause_of_its_error():
    with pytest.raises(ValueError, match="is missing") as raised:
        first_batch(Missing(ValueError))
    assert "in __getitem__" in str(raised.value.__cause__)


PROGRAM = """
import torch
from torch.utils.data import Dataset
from hear_m2d.pretrain.data import loader as batches
from hear_m2d.pretrain.data.crops import StepBatches

class Items(Dataset):
    def __getitem__(self, key):
        return {"x": torch.zeros(1)}

batches.GRACE_S = 1
steps = StepBatches(0, 9, batch_size=2, n_clips=4, seed=0)
kept = batches.batches(Items(), steps, share=slice(0, 2), patches=4, device=torch.device("cpu"), workers=1)
next(kept)
raise SystemExit(3)
"""


def test_a_program_that_ends_by_an_error_does_not_wait_for_its_loader_processes_for_ever():
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=100, check=False).returncode == 3
