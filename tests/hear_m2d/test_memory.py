"""Long audio: what an hour costs beyond five minutes, and whether it equals its parts done by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HOUR = 3600 * 16000

# Prints, for five minutes and for an hour, the bytes in use at the peak, beyond the model, the waveform and
# what is returned.
SCRIPT = """
import gc, re, sys
from pathlib import Path
import torch
from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

what, option = sys.argv[1:]
torch.manual_seed(0)
encoder = EncoderConfig(input_size=(80, 208), patch_size=(16, 16), width=32, depth=1, heads=1)
model = HearModel(ModelConfig(encoder=encoder), Options(timestamps=option)).eval()
function = {"scenes": model.scene_embeddings, "timestamps": model.timestamp_embeddings}[what]
function(torch.rand(1, 160000))  # what the first call alone costs: imports, thread pools
for minutes in (5, 60):
    audio = torch.rand(1, minutes * 60 * 16000).mul_(0.2).sub_(0.1)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    returned = function(audio)
    returned = returned if isinstance(returned, tuple) else (returned,)
    print(status("VmHWM") - before - sum(x.numel() * x.element_size() for x in returned))
    del audio, returned
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("scenes", "interpolate"),
        ("timestamps", "interpolate"),
        pytest.param("timestamps", "dense", marks=pytest.mark.slow),
    ],
)
def test_an_hour_takes_no_more_memory_than_five_minutes(what, option):
    # Freed memory goes back at once: what glibc would keep of it varies by more than what is looked for.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, option],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert short > 2**20
    assert long <= 1.2 * short


@torch.no_grad()
def test_an_hour_equals_its_windows_embedded_by_hand(make_model):
    model = make_model(frames=208, width=16, depth=1)
    audio = torch.rand(1, HOUR, generator=torch.Generator().manual_seed(0)).mul_(0.2).sub_(0.1)
    columns = model.columns(audio)[0]
    frames = HOUR // 160 + 1
    windows = -(-frames // 208)
    assert len(columns) == -(-frames // 16)
    for window in {0, 1, *range(2, windows - 2, 97), windows - 2, windows - 1}:
        first, last = 208 * window, min(208 * (window + 1), frames)
        margin = min(first, 2)  # frames before: the piece's own reflected start is cut off with them
        piece = audio[:, (first - margin) * 160 : (last + 2) * 160]
        x = model.standardized(piece)[:, :, margin : margin + last - first]
        x = torch.nn.functional.pad(x, (0, -x.shape[2] % 16))
        tokens = model.encoder(x[:, None])[0].reshape(5, -1, 16)  # rows, columns of the window, width
        expected = tokens.transpose(0, 1).flatten(1)
        found = columns[13 * window : 13 * window + len(expected)]
        assert (found - expected).abs().max() <= 1e-5, f"window {window}"
    scene = model.scene_embeddings(audio)[0]
    assert (scene - columns.double().mean(0)).abs().max() <= 1e-5
