"""The data that several tests of training use: twelve tones, prepared."""

import numpy as np
import pytest
import soundfile

from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData


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
