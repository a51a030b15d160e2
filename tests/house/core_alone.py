"""The wheel and its requirements, alone: `python -I tests/house/core_alone.py WHAT CHECKPOINT`.

Runs in an environment that holds nothing else of ours (`make test-newest`, `make test-lowest`). WHAT: `embed`
writes an untrained checkpoint and embeds sound with it; `tests` runs the core's tests that need no extra;
`validate` runs the official validator, which may say nothing but its standing note on rounding.
"""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEED_AN_EXTRA = ("export", "embed/test_ray.py", "test_recipes.py")  # of tests/hear_m2d
STANDING_NOTE = "involves rounding errors accumulating over longer audio"


def embed(checkpoint: str) -> None:
    """Write a checkpoint, load it again, and embed a clip alone and in a batch."""
    for absent in ("torchaudio", "pytorch_lightning", "accelerate", "tensorflow", "heareval"):
        assert importlib.util.find_spec(absent) is None, (
            f"{absent} is installed: the environment is not clean"
        )
    warnings.simplefilter("error")
    import numpy as np
    import torch

    import hear_m2d
    from hear_m2d.checkpoint.format import save_checkpoint
    from hear_m2d.model.config import ModelConfig
    from hear_m2d.model.encoder import SIZES, EncoderConfig

    assert Path(hear_m2d.__file__).is_relative_to(sys.prefix), f"imported from {hear_m2d.__file__}"
    torch.manual_seed(0)
    width, depth, heads = SIZES["tiny"]
    encoder = EncoderConfig(input_size=(80, 208), patch_size=(16, 16), width=width, depth=depth, heads=heads)
    save_checkpoint(checkpoint, hear_m2d.HearModel(ModelConfig(encoder=encoder)))
    model = hear_m2d.load_model(checkpoint)

    audio = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, 3 * 16_000)).astype(np.float32))
    scene = hear_m2d.get_scene_embeddings(audio, model)
    assert scene.shape == (3, model.scene_embedding_size)
    assert torch.isfinite(scene).all()
    assert (scene[0] - scene[1]).abs().max() > 1e-3
    alone = hear_m2d.get_scene_embeddings(audio[:1], model)
    assert (scene[:1] - alone).abs().max() < 1e-5
    embeddings, milliseconds = hear_m2d.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (*milliseconds.shape, model.timestamp_embedding_size)
    assert 0 < milliseconds.diff().max() <= 50
    packages = ("hear-m2d", "torch", "torchvision", "timm", "numpy", "safetensors", "huggingface_hub")
    print(", ".join(f"{name} {version(name)}" for name in packages), f"on Python {sys.version.split()[0]}")
    print(f"embedded {tuple(scene.shape)} scenes and {tuple(embeddings.shape)} timestamps: as expected")


def tests(checkpoint: str) -> None:
    """Run the core's tests against the wheel: the checkout's own folders stay off the path."""
    import hear_m2d

    assert Path(hear_m2d.__file__).is_relative_to(sys.prefix), f"imported from {hear_m2d.__file__}"
    left_out = [f"--ignore=tests/hear_m2d/{name}" for name in NEED_AN_EXTRA]
    assert all((ROOT / "tests/hear_m2d" / name).exists() for name in NEED_AN_EXTRA)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, "tests/hear_m2d"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": "1"}, check=False)
    if done.returncode:
        sys.exit(f"the tests of {Path(checkpoint).parent.name} failed (exit code {done.returncode})")


def validate(checkpoint: str) -> None:
    """Run `hear-m2d validate` as a person would, and read what it says."""
    command = Path(sysconfig.get_path("scripts")) / "hear-m2d"
    done = subprocess.run(
        [command, "validate", "--model", checkpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    warned = re.findall(r"^.*Warning: ?.*$", done.stdout, flags=re.M)
    others = [line for line in warned if STANDING_NOTE not in done.stdout[done.stdout.index(line) :][:400]]
    if done.returncode or others:
        sys.exit(f"the validator refused (exit code {done.returncode}) or warned: {others}")


if __name__ == "__main__":
    {"embed": embed, "tests": tests, "validate": validate}[sys.argv[1]](sys.argv[2])
