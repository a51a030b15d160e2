"""The data that several tests of training use: twelve tones, prepared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.checkpoint.format import read_tensors
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.training.state import STATE_KEY, States


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Twelve clips of a second, each a tone of another pitch in faint noise."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for i in range(12):
        t = np.arange(16000) / 16000
        tone = 0.3 * np.sin(2 * np.pi * 200 * (1 + i) * t) + 0.02 * rng.standard_normal(16000)
        soundfile.write(folder / f"{i}.wav", tone, 16000)
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(folder, out, progress=False)
    return LogMelData(out)


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The weights in the last state of a run: ``weights(folder)``, by name."""

    def read(out):
        states = States(out)
        return read_tensors(states.path(states.steps()[-1]), STATE_KEY)[0]

    return read
