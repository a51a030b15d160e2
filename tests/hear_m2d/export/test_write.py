"""Exported files compute what the model computes, anywhere; a file that does not is never written."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.export import verify as export_check
from hear_m2d.export import write as export
from hear_m2d.export.graph import ExportableModel
from hear_m2d.export.verify import compare
from hear_m2d.utils.errors import WorkFailedError

SHAPES = {
    "16x16": {"patch": (16, 16), "frames": 64},
    "16x4": {"patch": (16, 4), "frames": 40},
    "80x2": {"patch": (80, 2), "frames": 30},
    "32 kHz": {"patch": (16, 16), "frames": 48, "rate": 32000},
    "201 frames": {"patch": (16, 16), "frames": 201},
    "201 frames, layers": {"patch": (16, 16), "frames": 201, "options": {"layers": [0, -1]}},
    "no class token": {"patch": (16, 16), "frames": 64, "class_token": False},
    "32 kHz, 80x2, no class token": {"patch": (80, 2), "frames": 30, "rate": 32000, "class_token": False},
    "mean": {"patch": (16, 16), "frames": 64, "options": {"output": "mean"}},
    "tokens": {"patch": (16, 16), "frames": 64, "options": {"output": "tokens"}},
    "mean of layers": {
        "patch": (16, 16),
        "frames": 64,
        "options": {"layers": [0, 1], "layer_mode": "mean", "output": "mean"},
    },
}


FAST = ("16x4", "32 kHz, 80x2, no class token", "201 frames, layers")  # seconds each
FILES = [shape if shape in FAST else pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES]


@pytest.fixture
def model(request, make_model):
    model = make_model(width=32, **SHAPES[request.param])
    # Fine-tuned files hold other positions, that of the class token included.
    generator = torch.Generator().manual_seed(0)
    model.encoder.pos_embed += 0.1 * torch.randn(model.encoder.pos_embed.shape, generator=generator)
    return model


@pytest.fixture
def small(make_model):
    return make_model(width=32, licence="CC-BY-4.0")


@pytest.fixture(scope="module")
def exported(make_model, tmp_path_factory):
    """The folder of one model in both forms."""
    folder = tmp_path_factory.mktemp("exported")
    model = make_model(width=32, licence="CC-BY-4.0")
    export.export_onnx(model, folder / "checkpoint.onnx")
    export.export_torch(model, folder / "checkpoint.pt2")
    return folder


def assert_agrees(agreement):
    assert agreement.holds
    assert agreement.inputs >= 40


@pytest.mark.parametrize("model", SHAPES, indirect=True)
def test_the_graph_equals_the_model(model):
    assert_agrees(compare(ExportableModel(model).eval(), model))


@pytest.mark.parametrize("model", FILES, indirect=True)
def test_the_onnx_file_equals_the_model(model):
    assert_agrees(compare(export.run_onnx(export.onnx_bytes(model)), model))


@pytest.mark.parametrize("model", FILES, indirect=True)
def test_the_torch_file_equals_the_model(model):
    assert_agrees(compare(export.run_torch(export.torch_bytes(model)), model))


@pytest.mark.slow
def test_published_checkpoints_export(fixtures_dir, tmp_path):
    found = sorted(fixtures_dir.glob("*/*.pth"))
    assert found
    for path in found:
        model = hear_m2d.load_model(path)
        for write in (export.export_onnx, export.export_torch):
            assert write(model, tmp_path / f"{path.parent.name}.{write.__name__}").holds


def test_a_short_clip_costs_its_own_length_only(make_model):
    """Not a whole window of tokens, most of them masked."""
    seen = []
    model = make_model(width=32, frames=640)
    graph = ExportableModel(model).eval()
    graph.encoder.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    graph(torch.zeros(2, 32 * 160 - 1))  # two columns of five rows, and the class token
    assert seen == [(2, 1 + 2 * 5, 32)]


def test_loud_noise_agrees_too(small, exported, noise):
    run = export.run_onnx((exported / "checkpoint.onnx").read_bytes())
    audio = noise(2, 20000, scale=1.0)
    np.testing.assert_allclose(run(audio)[1], small.columns(audio), atol=export_check.TOLERANCE, rtol=0)


def test_sizes_are_computed_in_whole_numbers(exported):
    """Single precision cannot count the samples of 22 minutes: the last frame came out wrong."""
    import onnx

    graph = onnx.load(exported / "checkpoint.onnx").graph
    assert "Floor" not in {node.op_type for node in graph.node}


@pytest.mark.slow
def test_long_audio_has_as_many_columns_as_in_the_model(small, exported, noise):
    audio = noise(1, 160 * 2**17 - 1)
    _, columns = export.run_onnx((exported / "checkpoint.onnx").read_bytes())(audio)
    torch.testing.assert_close(columns, small.columns(audio), atol=1e-4, rtol=0)


def test_the_log_mel_of_a_loud_tone_is_near_double_precision(small):
    """Between the tone's lines the log-mel is near its floor, where rounding shows most."""
    audio = torch.sin(0.3 * torch.arange(16000.0))[None]
    config = small.config.frontend
    window = small.frontend.window.double()
    spectrum = torch.stft(audio.double(), config.n_fft, config.hop_length, window=window, return_complex=True)
    exact = torch.log(small.frontend.filters.double() @ spectrum.abs().square() + 1.1920929e-07)
    ours, frames = ExportableModel(small).frontend(audio)
    assert frames == exact.shape[2] == ours.shape[2]
    assert (ours - exact).abs().mean() < 1e-4


def test_onnx_metadata_says_what_the_file_is(small, exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "checkpoint.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["sample_rate"] == "16000"
    assert facts["hop_ms"] == "10"
    assert facts["column_ms"] == "160"
    assert facts["scene_embedding_size"] == "160"
    assert facts["licence"] == "CC-BY-4.0"
    assert json.loads(facts["config"]) == json.loads(json.dumps(small.config.to_json()))
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("audio", ["batch", "samples"])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("scene", ["batch", 160]),
        ("columns", ["batch", "columns", 160]),
    ]


def test_onnx_is_one_file_that_older_runtimes_read(exported):
    import onnx

    assert sorted(path.name for path in exported.iterdir()) == [
        "checkpoint.onnx",
        "checkpoint.pt2",
    ]  # no data beside it
    proto = onnx.load(exported / "checkpoint.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert [opset.version for opset in proto.opset_import if opset.domain == ""] == [export.OPSET]
    assert {node.domain for node in proto.graph.node} == {""}  # standard operators only
    assert proto.ir_version <= 10  # onnxruntime 1.20 reads no later one


def run_without(blocked, script, *arguments):
    """Run a script where some packages cannot be imported."""
    guard = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
    command = [sys.executable, "-c", guard + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_onnx_file_runs_without_torch(small, exported, noise, tmp_path):
    audio = noise(3, 12345)
    np.save(tmp_path / "audio.npy", audio.numpy())
    script = """
        import os, sys
        import numpy as np
        import onnxruntime
        os.chdir(sys.argv[1])
        session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
        scene, columns = session.run(None, {"audio": np.load("audio.npy")})
        np.savez("out.npz", scene=scene, columns=columns)
        assert "torch" not in {name for name, module in sys.modules.items() if module}
    """
    run_without(["torch", "timm", "hear_m2d"], script, tmp_path, exported / "checkpoint.onnx")
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(out["scene"], hear_m2d.get_scene_embeddings(audio, small), atol=1e-4, rtol=0)
    np.testing.assert_allclose(out["columns"], small.columns(audio), atol=1e-4, rtol=0)


def test_the_torch_file_runs_without_this_package(small, exported, noise, tmp_path):
    audio = noise(3, 12345)
    torch.save(audio, tmp_path / "audio.pt")
    script = """
        import json, os, sys
        import torch
        os.chdir(sys.argv[1])
        extra = {"hear_m2d.json": ""}
        program = torch.export.load(sys.argv[2], extra_files=extra)
        assert json.loads(extra["hear_m2d.json"])["sample_rate"] == "16000"
        scene, columns = program.module()(torch.load("audio.pt"))
        assert not scene.requires_grad
        torch.save((scene, columns), "out.pt")
    """
    run_without(["timm", "hear_m2d"], script, tmp_path, exported / "checkpoint.pt2")
    scene, columns = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(scene, hear_m2d.get_scene_embeddings(audio, small), atol=1e-4, rtol=0)
    torch.testing.assert_close(columns, small.columns(audio), atol=1e-4, rtol=0)


def test_the_documented_examples_run(exported, repo_root, monkeypatch):
    examples = (repo_root / "docs/export.md").read_text().split("```python\n")[1:]
    assert len(examples) == 2
    monkeypatch.chdir(exported)
    for example in examples:
        names = {}
        exec(example.split("```")[0], names)
        assert names["scene"].shape == (2, 160)
        assert names["columns"].shape == (2, 32, 160)  # 501 frames


@pytest.mark.parametrize(
    ("write", "fault"), [(export.export_onnx, "off by a little"), (export.export_torch, "not a number")]
)
def test_a_file_that_fails_the_check_is_not_left_behind(small, tmp_path, monkeypatch, write, fault):
    class Broken(ExportableModel):
        def forward(self, audio):
            scene, columns = super().forward(audio)
            return scene, columns + (3e-4 if fault == "off by a little" else float("nan"))

    monkeypatch.setattr(export, "ExportableModel", Broken)
    with pytest.raises(WorkFailedError, match=r"differs from the eager model.*was not written"):
        write(small, tmp_path / "m.file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_the_check_does_not_replace_the_last_one(small, tmp_path, monkeypatch):
    target = tmp_path / "m.pt2"
    target.write_bytes(b"precious")
    monkeypatch.setattr(export, "compare", lambda *_: export.Agreement(1, float("nan"), 0.0))
    with pytest.raises(WorkFailedError):
        export.export_torch(small, target, force=True)
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_a_wrong_shape_fails_the_check(small):
    graph = ExportableModel(small).eval()
    agreement = compare(lambda audio: (graph(audio)[0], graph(audio)[1][:, :-1]), small)
    assert not agreement.holds


def test_a_model_with_nan_weights_fails_the_check(small):
    with torch.no_grad():
        small.encoder.norm.bias[0] = float("nan")
    assert not compare(ExportableModel(small).eval(), small).holds


@pytest.mark.parametrize(
    ("option", "value"),
    [("windows", "published"), ("normalization", "batch"), ("timestamps", "dense"), ("dtype", "bfloat16")],
)
def test_options_that_no_file_has_are_refused(small, tmp_path, option, value):
    small.options = dataclasses.replace(small.options, **{option: value})
    with pytest.raises(ValueError, match=f"{option}='{value}' cannot be exported"):
        export.export_onnx(small, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_without_force(small, tmp_path):
    target = tmp_path / "m.pt2"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists"):
        export.export_torch(small, target)
    assert target.read_bytes() == b"precious"
    assert export.export_torch(small, target, force=True).holds
    assert target.read_bytes() != b"precious"


def test_exporting_leaves_the_model_as_it_was(small, noise):
    before = small.columns(noise(1, 8000))
    export.torch_bytes(small)
    torch.testing.assert_close(small.columns(noise(1, 8000)), before, atol=0, rtol=0)
    assert all(parameter.requires_grad for parameter in small.encoder.parameters())
