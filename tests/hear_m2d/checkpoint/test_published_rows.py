"""Each published file as a narrow synthetic one: from .pth, zip and folder, renamed, converted."""

import argparse
import json
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import PosixPath

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.card import notes_of
from hear_m2d.checkpoint.resolve import read_local

D, PREDICTOR = 64, 32


@dataclass(frozen=True)
class Row:
    """One published file: its names, what it holds, and what is to be read from it."""

    folder: str
    file: str
    kind: str
    patch: tuple[int, int] = (16, 16)
    frames: int = 608
    form: str = "train"  # train, encoder, tuned, runtime
    stats: bool = False
    offline: tuple[int, int] | None = None
    projector: str = ""
    target: bool = True
    class_token: bool = True
    split_bias: bool = False
    classes: int = 0
    head: int = D
    rate: int = 16000
    said: tuple[tuple[str, object], ...] = ()


def m2d(name, file="checkpoint-300.pth", kind="m2d", **rest):
    return Row(name, file, kind, **rest)


ROWS = {
    "1": m2d("m2d_vit_base-80x608p16x16-220930-mr7", said=(("mask_ratio", 0.7), ("epoch", 300))),
    "3": m2d("m2d_vit_base-80x608p16x16-221006-mr6", said=(("mask_ratio", 0.6),)),
    "4": m2d("m2d_vit_base-80x608p16x16-221006-mr7_enconly", form="encoder", stats=True),
    "5": m2d("m2d_vit_base-80x200p16x4-230529", patch=(16, 4), frames=200),
    "6": m2d("m2d_as_vit_base-80x608p16x16-240213", kind="m2d_as", offline=(527, 5 * D)),
    "7": m2d("m2d_clap_vit_base-80x608p16x16-240128", kind="m2d_clap", projector="2024", stats=True),
    "8": m2d(
        "m2d_as_vit_base-80x608p16x16p32k-240413_enconly", "weights_ep67it3124-0.48024.pth", "m2d_as",
        form="encoder", stats=True, rate=32000,
    ),
    "9a": m2d("m2d_s_vit_base-80x400p80x2-230201", "checkpoint-1000.pth", "m2d_s", patch=(80, 2), frames=400,
              offline=(D, D)),
    "9b": m2d("m2d_s_vit_base-80x608p80x2-230220", "checkpoint-1000.pth", "m2d_s", patch=(80, 2),
              offline=(D, D)),
    "10": m2d(
        "m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d", "weights_ep69it3124-0.47929.pth", frames=1001,
        form="tuned", stats=True, classes=527,
        said=(("fine_tuned_on", "AudioSet"), ("epoch", 69), ("score", 0.47929)),
    ),
    "12": m2d(
        "m2d_clap_vit_base-80x1001p16x16-240128_AS-FT_enconly", "weights_ep67it3124-0.48558.pth", "m2d_clap",
        frames=1001, form="tuned", stats=True, classes=527, projector="2024",
    ),
    "13": m2d(
        "m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly", "weights_ep69it3124-0.47998.pth", "m2d_as",
        frames=1001, form="tuned", stats=True, classes=527, rate=32000,
    ),
    "14": m2d("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", "checkpoint-30.pth", "m2d_clap", frames=1001,
              form="runtime", stats=True, projector="2025"),
    "15": m2d("m2d_clap_vit_base-80x1001p80x2p16kpBpTI-2025", "checkpoint-30.pth", "m2d_clap", patch=(80, 2),
              frames=1001, form="runtime", stats=True, projector="2025"),
    "16": m2d("msm_mae_vit_base-80x608p16x16-220924-mr75", kind="msm_mae", target=False,
              said=(("mask_ratio", 0.75),)),
    "17": m2d("80x512p16x16_paper", "checkpoint-100.pth", "msm_mae", frames=512, target=False,
              split_bias=True),
    "17, no class token": m2d("80x208p16x16_0422", "checkpoint-100.pth", "msm_mae", frames=208, target=False,
                              split_bias=True, class_token=False),
    "a head of columns": m2d(
        "m2d_vit_base-80x608p16x16-221006-mr7_as_46ab246d", "weights_ep69it3124-0.47929.pth",
        form="tuned", stats=True, classes=50, head=5 * D,
    ),
    "M2D-X": m2d("m2d_x_vit_base-80x200p16x4-240101", kind="m2d_x", patch=(16, 4), frames=200,
                 offline=(5 * D, 5 * D)),
}  # fmt: skip


@pytest.fixture
def numbers():
    """Small random tensors by shape, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: 0.2 * torch.randn(shape, generator=generator)


def block(name, width, numbers, *, hidden=None, split_bias=False):
    hidden = hidden or 4 * width
    shapes = {
        "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    biases = {"attn.q_bias": (width,), "attn.v_bias": (width,)}
    shapes |= biases if split_bias else {"attn.qkv.bias": (3 * width,)}
    return {f"{name}.{key}": numbers(*shape) for key, shape in shapes.items()}


def linear(name, out, features, numbers):
    return {f"{name}.weight": numbers(out, features), f"{name}.bias": numbers(out)}


def encoder(row, numbers):
    high, wide = row.patch
    places = row.class_token + 80 // high * (row.frames // wide)
    state = {"cls_token": numbers(1, 1, D)} if row.class_token else {}
    state |= {"norm_stats": torch.tensor([-6.5, 3.5])} if row.stats else {}
    state |= {"pos_embed": numbers(1, places, D), "patch_embed.proj.weight": numbers(D, 1, high, wide)}
    state |= {"patch_embed.proj.bias": numbers(D), "norm.weight": 1 + numbers(D), "norm.bias": numbers(D)}
    for index in range(2):
        state |= block(f"blocks.{index}", D, numbers, split_bias=row.split_bias)
    if row.projector == "2024":
        state |= linear("audio_proj.0", 48, D, numbers) | linear("audio_proj.2", 40, 48, numbers)
    if row.projector == "2025":
        state |= {"audio_proj.sem_token": numbers(1, 1, D), "audio_proj.norm.weight": numbers(D)}
        state |= {
            "audio_proj.norm.bias": numbers(D),
            **block("audio_proj.sem_blocks.0", D, numbers, hidden=D),
        }
    return state


def pretraining(row, numbers):
    state = encoder(row, numbers)
    places = state["pos_embed"].shape[1]
    state |= {"mask_token": numbers(1, 1, PREDICTOR), "decoder_pos_embed": numbers(1, places, PREDICTOR)}
    state |= linear("decoder_embed", PREDICTOR, D, numbers) | linear("decoder_pred", D, PREDICTOR, numbers)
    state |= {"decoder_norm.weight": numbers(PREDICTOR), "decoder_norm.bias": numbers(PREDICTOR)}
    state |= block("decoder_blocks.0", PREDICTOR, numbers, split_bias=row.split_bias)
    if row.target:
        state |= {"target_norm.weight": numbers(D), "target_norm.bias": numbers(D)}
        state |= block("target_blocks.0", D, numbers) | block("target_blocks.1", D, numbers)
    if row.offline:
        state |= linear("offline_predictor", *row.offline, numbers)
    if row.projector == "2024":
        state |= {"logit_scale": torch.tensor(2.6), **linear("text_proj", 40, 24, numbers)}
    return state


def content(row, numbers):
    """What the file holds, as its release does: see the lists of tensors in the method's reference."""
    if row.form == "encoder":
        return encoder(row, numbers)
    names = ("mel_basis", "stft.wsin", "stft.wcos", "stft.window_mask")
    tables = {f"to_spec.{name}": numbers(3) for name in names}
    if row.form == "tuned":
        state = {f"module.ar.runtime.backbone.{key}": t for key, t in encoder(row, numbers).items()}
        state |= {f"module.ar.runtime.{key}": table for key, table in tables.items()}
        state["module.head.norm.running_mean"] = numbers(row.head)
        state["module.head.norm.running_var"] = 1 + numbers(row.head) ** 2
        return state | linear("module.head.mlp.mlp.0", row.classes, row.head, numbers)
    state = pretraining(row, numbers)
    if row.form == "runtime":
        state = {f"backbone.{key}": tensor for key, tensor in encoder(row, numbers).items()} | tables
        state |= {"logit_scale": torch.tensor(2.6)}
        state |= block("text_encoder.text_encoder.encoder.layer.0", D, numbers)
    arguments = argparse.Namespace(
        model="a_model", blr=np.float64(3e-4), batch_size=np.int64(512), epochs=300,
        norm_pix_loss=np.bool_(True), output_dir=PosixPath("/data/runs/x"), norm_stats=None, data_path="data",
    )  # fmt: skip
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": numbers(7)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]}
    return {"model": state, "optimizer": optimizer, "epoch": 30, "scaler": {"scale": 1.0}, "args": arguments}


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def row(request):
    return request.param


@pytest.fixture
def stored(row, numbers):
    return content(row, numbers)


@pytest.fixture
def path(row, stored, tmp_path):
    """The row's .pth in its folder."""
    path = tmp_path / row.folder / row.file
    path.parent.mkdir()
    torch.save(stored, path)
    return path


def test_each_kind_reads_with_all_its_facts(row, path):
    checkpoint = read_local(path)
    config = checkpoint.config
    assert (config.kind, config.code_base) == (row.kind, "msm_mae" if row.split_bias else "m2d")
    assert config.encoder.input_size == (80, row.frames)
    assert config.encoder.patch_size == row.patch
    assert (config.encoder.width, config.encoder.depth, config.encoder.heads) == (D, 2, 1)
    assert config.encoder.class_token == row.class_token
    assert config.frontend.sample_rate == row.rate
    assert (config.mean, config.std) == ((-6.5, 3.5) if row.stats else (-7.1, 4.2))
    assert len(config.labels) == row.classes
    projectors = {"2024": "mean", "2025": "semantic", "": None}
    assert getattr(config.projector, "kind", None) == projectors[row.projector]
    assert config.head_width == (row.head if row.classes else None)
    assert checkpoint.provenance["sample_rate"] in ("file", "name")
    for key, value in row.said:
        assert config.training[key] == (30 if key == "epoch" and row.form == "train" else value)
    if row.form == "train":
        assert config.training["blr"] == 3e-4
        assert config.training["batch_size"] == 512
        json.dumps(config.training)
    notes = " ".join(notes_of(checkpoint))
    for name in ("decoder_blocks", "mask_token") if row.form == "train" else ():
        assert name in notes
    if row.form == "runtime" or (row.projector == "2024" and row.form == "train"):
        assert ("text_encoder" if row.form == "runtime" else "text_proj") in notes


def test_each_kind_gives_every_tensor_of_the_file_bit_for_bit(row, path, stored):
    found = dict(read_local(path).tensors)
    state = stored.get("model", stored)
    if row.split_bias:
        for index in range(2):
            q, k, v = found.pop(f"blocks.{index}.attn.qkv.bias").chunk(3)
            assert torch.equal(q, state[f"blocks.{index}.attn.q_bias"])
            assert not k.any()
            assert torch.equal(v, state[f"blocks.{index}.attn.v_bias"])
    if row.classes:
        assert found.pop("head.norm.num_batches_tracked") == 0
        for name in ("running_mean", "running_var"):
            assert torch.equal(found.pop(f"head.norm.{name}"), state[f"module.head.norm.{name}"])
        for name in ("weight", "bias"):
            assert torch.equal(found.pop(f"head.linear.{name}"), state[f"module.head.mlp.mlp.0.{name}"])
    prefix = {"tuned": "module.ar.runtime.backbone.", "runtime": "backbone."}.get(row.form, "")
    theirs = {
        "projector.hidden": "audio_proj.0", "projector.out": "audio_proj.2",
        "projector.blocks": "audio_proj.sem_blocks", "projector.token": "audio_proj.sem_token",
        "projector.norm": "audio_proj.norm",
    }  # fmt: skip
    for name, tensor in found.items():
        start = next((start for start in theirs if name.startswith(start)), "")
        assert torch.equal(tensor, state[prefix + theirs.get(start, "") + name.removeprefix(start)]), name


def embeddings(model, row):
    audio = 0.1 * torch.randn(2, row.rate, generator=torch.Generator().manual_seed(1))
    results = [hear_m2d.get_scene_embeddings(audio, model)]
    with torch.no_grad():
        results += [model.classify(audio)] if row.classes else []
        results += [model.project(audio)] if row.projector else []
    return results


def zipped(path, target, compression=zipfile.ZIP_DEFLATED, folder=True):
    with zipfile.ZipFile(target, "w", compression) as archive:
        if folder:
            archive.mkdir(path.parent.name)
            archive.writestr("__MACOSX/._checkpoint.pth", b"\x00\x05\x16\x07")
        archive.write(path, f"{path.parent.name}/{path.name}" if folder else path.name)
    return target


def test_folder_and_zip_embed_as_the_file_does(row, path, tmp_path):
    expected = embeddings(hear_m2d.load_model(path), row)
    places = [
        path.parent,
        zipped(path, tmp_path / f"{row.folder}.zip"),
        zipped(path, tmp_path / "renamed"),
        zipped(path, tmp_path / f"{row.folder}.2.zip", zipfile.ZIP_STORED, folder=False),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every one of them says its rate
        for place in places:
            model = hear_m2d.load_model(place)
            assert model.config.encoder.input_size == (80, row.frames)
            assert model.sample_rate == row.rate
            for found, wanted in zip(embeddings(model, row), expected, strict=True):
                assert torch.equal(found, wanted), place


def test_renamed_files_embed_the_same_and_warn_of_the_rate(row, path, tmp_path):
    renamed = tmp_path / "some" / "weights"
    renamed.parent.mkdir()
    shutil.copy(path, renamed)
    expected = embeddings(hear_m2d.load_model(path), row)
    with pytest.warns(UserWarning, match="16000 Hz taken"):
        hear_m2d.load_model(renamed)
    model = hear_m2d.load_model(renamed, sample_rate=row.rate, input_frames=row.frames)
    if row.form in {"train", "runtime"}:  # whose tensors or arguments tell
        assert model.config.kind == row.kind
    for found, wanted in zip(embeddings(model, row), expected, strict=True):
        assert torch.equal(found, wanted)


def test_converted_files_embed_the_same(row, path, tmp_path, run):
    target = tmp_path / "out" / "converted.safetensors"
    code, out, err = run("convert", path.parent, target)
    assert (code, err) == (0, "")
    assert "wrote" in out
    before, after = hear_m2d.load_model(path), hear_m2d.load_model(target)
    for found, wanted in zip(embeddings(after, row), embeddings(before, row), strict=True):
        assert torch.equal(found, wanted)
    for name in ("kind", "code_base", "encoder", "frontend", "mean", "std", "labels", "projector", "licence"):
        assert getattr(after.config, name) == getattr(before.config, name), name
    assert before.config.training.items() <= after.config.training.items()
    assert notes_of(read_local(target)) == notes_of(read_local(path))
