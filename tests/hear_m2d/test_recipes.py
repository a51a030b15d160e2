"""The recipes of docs/embedding.md, each run as it stands on a small folder of sounds."""

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d import cli

RATE = 16000


def recipe(repo_root, title: str) -> str:
    """The Python text under a heading of the page."""
    page = (repo_root / "docs" / "embedding.md").read_text()
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^#|\Z)", page, flags=re.M | re.S))
    (text,) = re.findall(r"```python\n(.*?)```", sections[title], flags=re.S)
    return text


@pytest.fixture
def folder(tmp_path, checkpoint_path, monkeypatch):
    """`sounds/<class>/*.wav`, `clip.wav`, `events.csv` and `checkpoint.safetensors`, as the page says."""
    checkpoint_path.rename(tmp_path / "checkpoint.safetensors")
    chance = np.random.default_rng(0)
    lines = ["file,onset_ms,offset_ms"]
    for name, hertz in (("high", 3000), ("low", 200)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for take in range(6):
            time = np.arange(RATE + 800 * take) / RATE
            onset = 0.2 + 0.05 * take
            burst = np.sin(2 * np.pi * hertz * time) * ((time > onset) & (time < onset + 0.4))
            sound = 0.5 * burst + 0.01 * chance.standard_normal(len(time))
            soundfile.write(tmp_path / "sounds" / name / f"{take}.wav", sound, RATE)
            lines.append(f"sounds/{name}/{take}.wav,{1000 * onset},{1000 * onset + 400}")
    (tmp_path / "events.csv").write_text("\n".join(lines))
    soundfile.write(tmp_path / "clip.wav", sound, RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def follow(repo_root, folder):
    """Run a recipe in the folder; return its variables."""

    def run(title):
        scope = {"__name__": "__main__"}
        exec(compile(recipe(repo_root, title), title, "exec"), scope)
        return scope

    return run


def test_first_example_embeds_a_file(repo_root, folder):
    page = (repo_root / "docs" / "embedding.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, flags=re.S)[1], scope)
    assert scope["scene"].shape == (1, scope["model"].scene_embedding_size)
    assert scope["frames"].shape[:2] == scope["ms"].shape


def test_scene_embeddings_of_a_folder(follow, folder):
    scope = follow("Scene embeddings of a folder")
    saved = np.load(folder / "scenes.npy")
    assert saved.shape == (12, scope["model"].scene_embedding_size)
    alone = hear_m2d.get_scene_embeddings(scope["clips"][7][None], scope["model"])
    np.testing.assert_allclose(saved[7], alone[0].numpy(), atol=1e-5)


def test_timestamps_for_event_detection_find_the_bursts(follow, capsys):
    scope = follow("Timestamps for event detection")
    predicted = scope["detector"].predict(torch.cat(scope["embeddings"]).numpy())
    truth = np.concatenate(scope["active"])
    assert 0.2 < truth.mean() < 0.6
    assert (predicted == truth).mean() > 0.9
    assert "sounds/low/5.wav: from " in capsys.readouterr().out


def test_a_scikit_learn_classifier_tells_high_from_low(follow, capsys):
    scope = follow("A scikit-learn classifier on top")
    assert scope["scores"].mean() > 0.8
    assert capsys.readouterr().out.startswith("accuracy ")


def test_fine_tuning_the_encoder_lowers_the_loss_and_is_saved(follow, folder):
    scope = follow("Fine-tuning the encoder in plain PyTorch")
    assert np.mean(scope["losses"][-5:]) < 0.7 * np.mean(scope["losses"][:5])
    tuned, before = (hear_m2d.load_model(f"{name}.safetensors") for name in ("tuned", "checkpoint"))
    assert not torch.equal(tuned.encoder.blocks[0].mlp.fc1.weight, before.encoder.blocks[0].mlp.fc1.weight)
    assert torch.equal(tuned.columns(scope["audio"]), scope["model"].columns(scope["audio"]))


def test_a_hugging_face_datasets_map_adds_embeddings(follow, folder):
    scope = follow("A Hugging Face `datasets.map`")
    assert len(scope["dataset"]) == 12
    assert len(scope["dataset"][0]["embedding"]) == scope["model"].scene_embedding_size
    assert (folder / "embeddings.parquet").stat().st_size > 0


def test_the_exported_model_runs_without_torch(repo_root, folder):
    with pytest.raises(SystemExit) as done:
        cli.main(["export", "checkpoint.safetensors", "--format", "onnx", "--out", "model.onnx"])
    assert done.value.code == 0
    program = "import sys\nsys.modules['torch'] = None\n" + recipe(
        repo_root, "The exported model, without torch"
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    model = hear_m2d.load_model("checkpoint.safetensors")
    audio = torch.from_numpy(soundfile.read("clip.wav", dtype="float32")[0])[None]
    found = np.load(folder / "scene.npy")
    np.testing.assert_allclose(found, hear_m2d.get_scene_embeddings(audio, model).numpy(), atol=1e-4)
