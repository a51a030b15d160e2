"""The official tools beside a real tensorflow, plain and with repairs: `python tests/evaluation/check_tf.py`.

`make test-tf` runs it in an environment with tensorflow-cpu. The validator and the embeddings runner must
work as their authors start them, with no repair, and give byte for byte the embeddings that they give with
the stand-in; the whole evaluation must not mind tensorflow being there.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from tiny_tasks import events, scene_multiclass

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel

COMPAT = ("-m", "hear_m2d.evaluation.hear.compat")
VALIDATOR, EMBEDDINGS = "hearvalidator.validate", "heareval.embeddings.runner"


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(*args: str) -> str:
    """Run Python with arguments, on the CPU, and return what it printed."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, check=False, env=os.environ | quiet
    )
    assert done.returncode == 0, f"python {' '.join(args)} ended with {done.returncode}\n{done.stderr}"
    return done.stdout


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every packed file of embeddings and labels (that of timestamps holds paths)."""
    kinds = ("*.embeddings.npy", "*.target-labels.pkl")
    files = sorted(file for kind in kinds for file in folder.rglob(kind))
    assert files, f"no embeddings in {folder}"
    return {file.name + file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main() -> None:
    """Check each of the three in turn."""
    tensorflow = run("-c", "import tensorflow; print(tensorflow.__version__)").strip()
    say(f"tensorflow {tensorflow}, torch {version('torch')}, heareval {version('heareval')}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        torch.manual_seed(0)
        encoder = EncoderConfig(input_size=(80, 96), patch_size=(16, 16), width=48, depth=2, heads=3)
        checkpoint = str(place / "untrained.safetensors")
        save_checkpoint(checkpoint, HearModel(ModelConfig(encoder=encoder)))
        scene_multiclass(place / "tasks")
        events(place / "tasks", seconds=3.0)

        for start in (("-m",), COMPAT):
            assert "Looks good!" in run(*start, VALIDATOR, "hear_m2d", "-m", checkpoint, "-d", "cpu")
            say(f"python {' '.join(start)} {VALIDATOR}: looks good")
        assert "Looks good!" in run("-m", VALIDATOR, "hear_m2d")
        say(f"python -m {VALIDATOR} without a model (the default model): looks good")

        for start, out in ((("-m",), "plain"), (COMPAT, "stand-in")):
            where = ("--tasks-dir", str(place / "tasks"), "--embeddings-dir", str(place / out))
            run(*start, EMBEDDINGS, "hear_m2d", "--model", checkpoint, *where)
            say(f"python {' '.join(start)} {EMBEDDINGS}: {len(sums(place / out))} files")
        assert sums(place / "plain") == sums(place / "stand-in"), "the stand-in changes the embeddings"
        say("plain and with the stand-in: the same, byte for byte")

        settings = ("--grid", "faster", "--grid-points", "1", "--device", "cpu", "--model", checkpoint)
        where = ("--tasks-dir", str(place / "tasks"), "--out", str(place / "out"))
        run("-m", "hear_m2d.cli", "evaluate", *settings, *where)
        tasks = json.loads((place / "out/results.json").read_text())["tasks"]
        assert [task["status"] for task in tasks] == ["ok", "ok"], tasks
        say("hear-m2d evaluate: 2 of 2 tasks have a score")


if __name__ == "__main__":
    main()
