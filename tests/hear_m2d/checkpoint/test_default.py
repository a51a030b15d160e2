"""The default model of the package: it loads offline, embeds as when it was made, and has its credits."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

import hear_m2d
from hear_m2d.checkpoint.resolve import DEFAULT, read_weights

CREDITS = DEFAULT.with_name("default_credits.md")
GOLDEN = {
    "size": 960,
    "first": [0.13187, -0.18398, -0.18646, -0.29265, 0.11375, -0.7506, 0.34324, 0.23097],
    "norm": 26.4698,
}


def chirp(rate):
    """Two seconds of a rising tone with a fixed fade."""
    t = np.arange(2 * rate) / rate
    return torch.from_numpy(0.3 * np.sin(2 * np.pi * (200 * t + 400 * t**2)) * np.minimum(4 * t, 1)).float()


@pytest.fixture(scope="module")
def model():
    return hear_m2d.load_model()


def test_the_embedding_of_a_generated_waveform_is_that_of_the_day_it_was_made(model):
    scene = hear_m2d.get_scene_embeddings(chirp(model.sample_rate)[None], model)[0]
    assert len(scene) == GOLDEN["size"]
    assert scene[:8].tolist() == pytest.approx(GOLDEN["first"], abs=1e-4)
    assert float(scene.norm()) == pytest.approx(GOLDEN["norm"], rel=1e-4)


def test_it_fits_into_the_wheel_and_is_stored_in_half_precision(model):
    assert DEFAULT.stat().st_size <= 25e6
    with safe_open(DEFAULT, framework="pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_it_says_its_license_and_how_it_was_trained():
    config = read_weights().config
    assert config.licence == "Apache-2.0"
    assert config.training["data"]["clips"] == 6186
    assert "/" not in config.training["recipe"]["init"], "no path of the machine that made it"


def test_its_credits_name_every_source_and_leave_out_what_was_not_used():
    text = CREDITS.read_text(encoding="utf-8")
    for credited in ("librispeech", "berklee_", "speech_commands", "openclonk", "Kevin MacLeod", "CC BY 4.0"):
        assert credited in text
    assert not re.search("BY-SA|ODbL|donateacry|sampled_orchestra", text)


def test_it_loads_without_a_network_connection(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "import hear_m2d\n"
        "print(hear_m2d.load_model().scene_embedding_size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == GOLDEN["size"]
