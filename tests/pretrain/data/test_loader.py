"""Batches of a run: what is reported when a loader process fails."""

import os
import signal
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.pretrain.data import loader
from hear_m2d.pretrain.data.crops import Crops
from hear_m2d.pretrain.data.loader import batches
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sampling import StepBatches
from hear_m2d.utils.errors import InputError, WorkFailedError


class Items:
    def __getitem__(self, key):
        return {"x": torch.zeros(3)}

    def __getitems__(self, keys):
        return {"x": torch.zeros(len(keys), 3)}


class Deadly(Items):
    """A loader process ends by a signal, as when it takes too much memory."""

    def __init__(self, signal_number):
        self.main, self.signal_number = os.getpid(), signal_number

    def __getitems__(self, keys):
        if os.getpid() != self.main:
            os.kill(os.getpid(), self.signal_number)
        return super().__getitems__(keys)


class Broken(Items):
    """Its second batch fails; the message has a line break, as those of servers do."""

    def __init__(self, kind):
        self.kind = kind

    def __getitems__(self, keys):
        if len(keys) == 2 and keys[0][0] == 1:
            raise self.kind("a.npy is missing:\neach file needs one")
        return super().__getitems__(keys)


class Unlucky(Items):
    """It fails in loader processes only."""

    def __init__(self):
        self.main = os.getpid()

    def __getitems__(self, keys):
        if os.getpid() != self.main:
            raise RuntimeError("once")
        return super().__getitems__(keys)


def all_batches(items, workers=1):
    steps = StepBatches(0, 3, batch_size=2, n_clips=2, seed=0)
    options = {"share": slice(0, 2), "patches": 4, "device": torch.device("cpu"), "workers": workers}
    return list(batches(items, steps, **options))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGBUS])
def test_a_loader_process_that_is_killed_is_reported_with_its_signal(signal_number):
    message = rf"a loader process failed \(exit code -{signal_number:d}\).*The same command continues"
    with pytest.raises(WorkFailedError, match=message):
        all_batches(Deadly(signal_number))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [InputError, ConnectionError, WorkFailedError, RuntimeError])
def test_an_error_of_a_loader_process_has_its_own_message_only(kind, workers):
    with pytest.raises(kind) as raised:
        all_batches(Broken(kind), workers)
    assert type(raised.value) is kind
    assert str(raised.value) == "a.npy is missing:\neach file needs one"


def test_an_error_that_does_not_come_again_is_failed_work():
    with pytest.raises(WorkFailedError, match=r"failed \(RuntimeError\).*The same command continues"):
        all_batches(Unlucky())


def test_too_little_shared_memory_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(loader, "_SHARED_MEMORY", loader.Path("/"))
    monkeypatch.setattr(
        loader.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(1, 1, 10)
    )
    assert len(all_batches(Items(), workers=0)) == 3
    message = r"1 loader processes need 0 MiB of shared memory .*--shm-size=8g.*--workers 0"
    with pytest.raises(InputError, match=message):
        all_batches(Items())


PROGRAM = """
import torch
from hear_m2d.pretrain.data import loader
from hear_m2d.pretrain.data.sampling import StepBatches

class Items:
    def __getitem__(self, key):
        return {"x": torch.zeros(1)}
    def __getitems__(self, keys):
        return {"x": torch.zeros(len(keys), 1)}

loader.GRACE_S = 1
steps = StepBatches(0, 9, batch_size=2, n_clips=4, seed=0)
kept = loader.batches(Items(), steps, share=slice(0, 2), patches=4, device=torch.device("cpu"), workers=1)
next(kept)
raise SystemExit(3)
"""


def test_a_program_that_ends_by_an_error_does_not_wait_for_its_loader_processes_for_ever():
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=100, check=False).returncode == 3


def test_batches_are_the_same_with_and_without_loader_processes(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(16000), 16000)
    prepare(tmp_path, tmp_path / "out")
    crops = Crops(LogMelData(tmp_path / "out"), frames=40)
    for here, there in zip(all_batches(crops, workers=0), all_batches(crops, workers=2), strict=True):
        assert torch.equal(here["x"], there["x"])
        assert torch.equal(here["noise"], there["noise"])
