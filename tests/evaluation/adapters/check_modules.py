"""Modules of others, scored end to end: `make test-modules`.

An official archive (44.1 kHz, `spoken_digit`) is unpacked and resampled; then `hear-m2d validate`, `evaluate`
and `report` run on the organizers' baseline, on PaSST with random weights, on a module of ten lines, and on a
Hugging Face encoder with random weights. Needs HEAR_M2D_DATA, hearbaseline 2021.1.1 with librosa 0.9.2, and
hear21passt. The smallest grid is used: with 60 clips to train on, the scores only show that the path works.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TASK = "spoken_digit-1.0.9-small"
HUGGING_FACE = "hear_m2d.evaluation.adapters.transformers"
GRID = ("--grid", "faster", "--grid-points", "1")


def documented(name: str) -> str:
    """Return a module as docs/score_your_model.md has it."""
    page = Path(__file__).resolve().parents[3] / "docs" / "score_your_model.md"
    found = re.search(rf"```python\n# {re.escape(name)}\n(.*?)```", page.read_text(), re.DOTALL)
    assert found, f"no {name} in {page}"
    return found[1]


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def hear_m2d(place: Path, *arguments: str) -> str:
    """Run `hear-m2d` in a folder whose modules can be imported; return what it printed."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hear_m2d.cli", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"hear-m2d {' '.join(arguments)}: {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


def save_wav2vec2(folder: Path) -> None:
    """Save a small wav2vec 2.0 with random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 2}
    config = Wav2Vec2Config(**sizes, conv_dim=(64,) * 7, num_conv_pos_embedding_groups=4)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


def main() -> None:
    """Score each module, then write one report of all."""
    names = ("hearbaseline", "librosa", "hear21passt", "transformers", "heareval", "torch")
    say(", ".join(f"{name} {version(name)}" for name in names))
    archives = Path(os.environ["HEAR_M2D_DATA"]).absolute() / "archives"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        hear_m2d(place, "tasks", "download", "--from", str(archives), "--to", "tasks")
        for rate in ("32000", "16000"):
            hear_m2d(place, "tasks", "resample", "tasks", "--rate", rate)
        for file in ("random_passt.py", "ten_lines.py"):
            (place / file).write_text(documented(file))
        save_wav2vec2(place / "wav2vec2")
        modules = {
            "hearbaseline.naive": ("--module", "hearbaseline.naive"),
            "random_passt": ("--module", "random_passt"),
            "ten_lines": ("--module", "ten_lines"),
            "wav2vec2": ("--module", HUGGING_FACE, "--model", "wav2vec2"),
        }
        for module, arguments in modules.items():
            begin = time.monotonic()
            assert "Looks good!" in hear_m2d(place, "validate", *arguments, "--device", "cpu")
            validated = time.monotonic()
            where = ("--tasks-dir", "tasks", "--task", TASK, "--out", f"runs/{module}", "--device", "cpu")
            hear_m2d(place, "evaluate", *arguments, *GRID, *where)
            results = json.loads((place / "runs" / module / "results.json").read_text())
            (task,) = results["tasks"]
            assert task["status"] == "ok", task
            assert len(task["folds"]) == 5, task
            seconds = f"validate {validated - begin:.0f} s, evaluate {time.monotonic() - validated:.0f} s"
            say(f"{module}: looks good; {task['metric']} {task['score']:.3f} over 5 folds; {seconds}")
        hear_m2d(place, "report", *(f"runs/{module}" for module in modules), "--out", "report.html")
        page = (place / "report.html").read_text()
        assert all(module in page for module in modules)
        say(f"hear-m2d report: {len(modules)} runs, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
