"""The adapters under the real mteb and xares: `python tests/evaluation/adapters/check_adapters.py`.

`make test-adapters` runs it in an environment with both packages. A narrow untrained network goes through
a real mteb audio classification task and a real X-ARES task (its checker, encoding, MLP and kNN), each made
of synthetic sounds on this disk; their scores must be well above chance.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
import torch

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.evaluation.adapters.mteb import MtebEncoder
from hear_m2d.evaluation.adapters.xares import XaresEncoder, decode_with_soundfile
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.hear_model import HearModel

CLASSES = ("low", "high", "noise")
PER_CLASS = {"train": 12, "valid": 6, "test": 8}
CHANCE = 1 / len(CLASSES)


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def sound(kind: str, random: np.random.Generator, rate: int) -> np.ndarray:
    """One sound of a class, (samples,), of random length, pitch and loudness."""
    time = np.arange(int(rate * random.uniform(0.4, 1.3))) / rate
    pitch = {"low": random.uniform(150, 300), "high": random.uniform(2000, 4000)}.get(kind, 0.0)
    tone = np.sin(2 * np.pi * pitch * time) if pitch else random.standard_normal(len(time)) / 3
    return (random.uniform(0.1, 0.5) * tone + 0.003 * random.standard_normal(len(time))).astype(np.float32)


def sounds(folder: Path, split: str) -> list[tuple[Path, str]]:
    """Write the files of a split, of two rates, mono and stereo, and return them with their classes."""
    random = np.random.default_rng(sorted(PER_CLASS).index(split))
    folder.mkdir(parents=True)
    found = []
    for number in range(PER_CLASS[split]):
        for kind in CLASSES:
            rate = (16000, 22050)[number % 2]
            mono = sound(kind, random, rate)
            samples = np.stack([mono, 0.5 * mono], axis=1) if number % 3 == 2 else mono
            path = folder / f"{split}-{kind}-{number}.wav"
            soundfile.write(path, samples, rate)
            found.append((path, kind))
    return found


def check_mteb(model: HearModel, place: Path) -> float:
    """Run a real audio classification task of mteb; return its accuracy."""
    import mteb
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol

    class SyntheticSounds(AbsTaskClassification):
        metadata = TaskMetadata(
            name="SyntheticSounds",
            description="Low tones, high tones and noise.",
            dataset={"path": "local/synthetic", "revision": "1"},
            type="AudioClassification",
            category="a2c",
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score="accuracy",
            modalities=["audio"],
        )
        input_column_name = "audio"
        n_experiments = 3

        def load_data(self, **kwargs: object) -> None:
            """Read the files with soundfile into arrays, channels first, as mteb has them."""
            splits: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
            for split, rows in splits.items():
                for path, kind in sounds(place / "mteb" / split, split):
                    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
                    audio = {"array": samples.T.tolist(), "sampling_rate": rate}
                    rows.append({"audio": audio, "label": CLASSES.index(kind)})
            self.dataset = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
            self.data_loaded = True

    encoder = MtebEncoder(model, name="hear-m2d/untrained")
    assert isinstance(encoder, EncoderProtocol), "mteb does not take the adapter for an encoder"
    result = mteb.evaluate(encoder, SyntheticSounds(), cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.model_name == "hear-m2d/untrained", result
    assert result.model_revision == encoder.revision, result
    return float(result.task_results[0].get_score())


def write_tar(place: Path, split: str, folder: Path) -> None:
    """Write one webdataset archive of X-ARES: a .wav and a .json of the same name for each sound."""
    with tarfile.open(place / f"{split}-0000.tar", "w") as tar:
        for path, kind in sounds(folder / split, split):
            for suffix, data in ((".wav", path.read_bytes()), (".json", json.dumps({"kind": kind}).encode())):
                entry = tarfile.TarInfo(path.stem + suffix)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def check_xares(model: HearModel, place: Path, frames: str) -> tuple[float, float]:
    """Run X-ARES's checker and a real task; return the accuracy of its MLP and its kNN."""
    import webdataset
    from xares.audio_encoder_checker import check_audio_encoder
    from xares.task import TaskConfig, XaresTask

    webdataset.torch_audio = decode_with_soundfile
    encoder = XaresEncoder(model, frames=frames)
    assert check_audio_encoder(encoder), "X-ARES's checker refuses the adapter"
    config = TaskConfig(
        name="synthetic",
        env_root=place / frames,
        encoder=encoder,
        label_processor=lambda facts: CLASSES.index(facts["kind"]),
        output_dim=len(CLASSES),
        epochs=10,
        batch_size_train=12,
        learning_rate=1e-2,
        eval_weight=1,
        num_encoder_workers=0,
        private=True,
    )
    task = XaresTask(config)
    for split in PER_CLASS:
        write_tar(task.env_dir, split, place / frames / "sounds")
    (task.env_dir / config.xares_settings.audio_ready_filename).touch()
    task.make_encoded_tar()
    return float(task.run_mlp()[0]), float(task.run_knn()[0])


TASK_FILE = """
from xares.task import TaskConfig


def synthetic_config(encoder):
    return TaskConfig(
        name="synthetic",
        encoder=encoder,
        label_processor=lambda facts: CLASSES.index(facts["kind"]),
        output_dim=len(CLASSES),
        epochs=10,
        batch_size_train=12,
        learning_rate=1e-2,
        eval_weight=1,
        private=True,
    )
"""


def documented_encoder() -> str:
    """Return the encoder's file as docs/harnesses.md has it."""
    page = Path(__file__).resolve().parents[3] / "docs" / "harnesses.md"
    found = re.search(r"```python\n(# hear_m2d_encoder\.py\n.*?)```", page.read_text(), re.DOTALL)
    assert found, f"no encoder's file in {page}"
    return found[1]


def check_xares_command(model: HearModel, place: Path) -> float:
    """Run X-ARES as its users do, from an encoder's file and a task's; return the accuracy of its MLP."""
    place.mkdir()
    save_checkpoint(place / "checkpoint.safetensors", model)
    (place / "hear_m2d_encoder.py").write_text(documented_encoder())
    (place / "synthetic_task.py").write_text(f"CLASSES = {CLASSES!r}\n{TASK_FILE}")
    audio = place / "env" / "synthetic"
    audio.mkdir(parents=True)
    for split in PER_CLASS:
        write_tar(audio, split, place / "sounds")
    (audio / ".audio_tar_ready").touch()
    files = ("hear_m2d_encoder.py", "synthetic_task.py")
    command = [sys.executable, "-m", "xares.run", *files, "--max-jobs", "0", "--from-stage", "1"]
    environment = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"Weighted Average MLP Score for All Datasets: ([\d.]+)", done.stdout)
    assert found, f"no score from {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return float(found[1])


def main() -> None:
    """Check mteb, then X-ARES with columns and with timestamps, then X-ARES's own command."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    names = ("mteb", "xares", "torch", "datasets", "webdataset")
    say(", ".join(f"{name} {version(name)}" for name in names))
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 64), patch_size=(16, 16), width=48, depth=2, heads=3)
    model = HearModel(ModelConfig(encoder=encoder)).eval()
    scores = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        scores["mteb, linear"] = check_mteb(model, place)
        for frames in ("columns", "timestamps"):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its log and bars
                mlp, knn = check_xares(model, place, frames)
            scores |= {f"X-ARES, {frames}, MLP": mlp, f"X-ARES, {frames}, kNN": knn}
        scores["python -m xares.run, MLP"] = check_xares_command(model, place / "command")
    for what, score in scores.items():
        say(f"{what:<28} accuracy {score:.3f} (chance {CHANCE:.3f})")
    poor = [what for what, score in scores.items() if not score > 2 * CHANCE]
    assert not poor, f"no better than chance: {', '.join(poor)}"


if __name__ == "__main__":
    main()
