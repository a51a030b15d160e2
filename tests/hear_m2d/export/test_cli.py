"""`hear-m2d export`: from a checkpoint to a file that runs, and one line for what cannot be done."""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.export import write as export


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run the command in this process, in an empty folder: (exit code, standard output, standard error)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return partial(run, "export")


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "here").iterdir())


def assert_one_line(result, code, *words):
    assert result[0] == code
    assert result[2].startswith("error: ")
    assert result[2].count("\n") == 1
    assert "Traceback" not in result[2]
    for word in words:
        assert word in result[2]


def test_onnx_from_checkpoint_to_numbers(run, checkpoint_path, noise, tmp_path):
    import onnxruntime

    code, out, err = run(checkpoint_path, "--format", "onnx")
    assert (code, err) == (0, "")
    assert "largest difference to the eager model" in out
    assert "wrote model.onnx" in out
    assert names(tmp_path) == ["model.onnx"]
    audio = noise(2, 9999)
    scene, _ = onnxruntime.InferenceSession("model.onnx").run(None, {"audio": audio.numpy()})
    wanted = hear_m2d.get_scene_embeddings(audio, hear_m2d.load_model(checkpoint_path))
    np.testing.assert_allclose(scene, wanted, atol=1e-4, rtol=0)


def test_torch_from_checkpoint_to_numbers_over_an_older_file(run, checkpoint_path, noise, tmp_path):
    (tmp_path / "here/model.pt2").write_bytes(b"old")
    options = ("--format", "torch", "--force", "--model-options", '{"output": "mean"}')
    code, out, err = run(checkpoint_path, *options)
    assert (code, err) == (0, "")
    assert "wrote model.pt2" in out
    assert names(tmp_path) == ["model.pt2"]
    audio = noise(2, 9999)
    scene, _ = torch.export.load("model.pt2").module()(audio)
    wanted = hear_m2d.get_scene_embeddings(audio, hear_m2d.load_model(checkpoint_path, output="mean"))
    torch.testing.assert_close(scene, wanted, atol=1e-4, rtol=0)


def test_a_failed_check_exits_with_1_and_leaves_nothing(run, checkpoint_path, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "compare", lambda *_: export.Agreement(48, 2e-4, 0.0))
    assert_one_line(run(checkpoint_path, "--format", "torch"), 1, "0.0002", "model.pt2 was not written")
    assert names(tmp_path) == []


def test_an_existing_file_is_refused_before_anything_is_read(run, tmp_path):
    (tmp_path / "here/x.onnx").write_bytes(b"precious")
    assert_one_line(run("no-such.safetensors", "--out", "x.onnx"), 2, "x.onnx exists", "--force")
    assert (tmp_path / "here/x.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.safetensors",), ["none.safetensors"]),
        ((".",), ["holds no file that ends in"]),
        (("{}", "--format", "tflite"), ["onnx", "torch"]),
        (("{}", "--out", "."), ["is a folder"]),
        (("{}", "--model-options", "layers=1"), ["is not JSON"]),
        (("{}", "--model-options", "[1]"), ["is not a JSON object"]),
        (("{}", "--model-options", '{"layer": [1]}'), ["Did you mean layers"]),
        (("{}", "--model-options", '{"windows": "published"}'), ["windows='published' cannot be exported"]),
    ],
)
def test_wrong_usage_is_one_line(run, checkpoint_path, tmp_path, arguments, words):
    assert_one_line(run(*(a.replace("{}", str(checkpoint_path)) for a in arguments)), 2, *words)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("runs/m2d_0.7", "m2d_0.7.pt2"),
        ("runs/m2d_0.7.safetensors", "m2d_0.7.pt2"),
        ("runs/m2d_0.7.PTH", "m2d_0.7.pt2"),
        ("hf://lab/birds-v1.2", "birds-v1.2.pt2"),
        ("hf://lab/birds/v1.2/last.ckpt", "last.pt2"),
        ("https://lab.example/birds-v1.2.zip?token=secret#sha256=0a", "birds-v1.2.pt2"),
    ],
)
def test_the_file_is_called_after_the_checkpoint_whose_name_may_hold_dots(
    run, checkpoint_path, monkeypatch, tmp_path, model, written
):
    loaded = hear_m2d.load_model(checkpoint_path)
    monkeypatch.setattr(hear_m2d, "load_model", lambda name, **_: loaded)
    monkeypatch.setattr(export, "export_torch", write_nothing)
    code, _, err = run(model, "--format", "torch")
    assert (code, err) == (0, "")
    assert names(tmp_path) == [written]


def write_nothing(model, target, *, force):
    target.write_bytes(b"")
    return export.Agreement(1, 0.0, 0.0)


def test_without_the_extra_only_onnx_is_refused(run, checkpoint_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest)
    )
    assert_one_line(run(checkpoint_path), 2, "needs onnxscript", "pip install 'hear-m2d[export]'")
    assert_one_line(run(checkpoint_path, "--format", "torch", "--out", "."), 2, "is a folder")
