"""A path to a checkpoint: file, zip or folder, told by content; what is said of none, or of several."""

import argparse
import os
import zipfile

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import save_checkpoint, write_tensors
from hear_m2d.checkpoint.resolve import read_local

PLACES = ["file", "folder", "folder above", "zip", "folder in zip", "zip's folder"]
NAME = "m2d_vit_base-80x64p16x16p32k-240101-mr6"


@pytest.fixture
def pth(make_model, tmp_path):
    """A published 32 kHz file, with nothing in its own name."""
    path = tmp_path / "loose" / "weights.pth"
    path.parent.mkdir()
    torch.save({n: t.clone() for n, t in make_model(heads=1).encoder.state_dict().items()}, path)
    return path


@pytest.fixture
def run_folder(make_model, tmp_path):
    """What ``hear-m2d pretrain`` leaves."""
    folder = tmp_path / "run"
    model = make_model()
    save_checkpoint(folder / "checkpoint.safetensors", model)
    for name in ("objective", "state"):
        tensors = {"decoder_pred.weight": torch.zeros(3)}
        write_tensors(folder / f"{name}.safetensors", tensors, {f"hear_m2d_{name}": {"step": 3}})
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_bytes(b"\x18\0\0\0\0\0\0\0")
    return folder


def packed(path, member, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, member)
    return target


def test_a_runs_folder_gives_its_checkpoint(run_folder, noise):
    expected = hear_m2d.load_model(run_folder / "checkpoint.safetensors")
    model = hear_m2d.load_model(run_folder)
    assert model.config == expected.config
    assert torch.equal(model.columns(noise(1, 9000)), expected.columns(noise(1, 9000)))


def test_a_runs_folder_in_a_zip_gives_its_checkpoint(run_folder, tmp_path):
    target = tmp_path / "run.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for path in run_folder.rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    expected = read_local(run_folder / "checkpoint.safetensors")
    found = read_local(target)
    assert found.config == expected.config
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize("place", ["file", "folder", "folder above", "zip", "folder in zip", "zip's folder"])
def test_the_name_may_be_that_of_the_file_its_folder_or_its_zip(pth, tmp_path, place):
    folder = tmp_path / (NAME if place in {"folder", "folder above", "zip's folder"} else "elsewhere")
    folder.mkdir()
    given = {
        "file": lambda: pth.rename(folder / f"{NAME}.pth"),
        "folder": lambda: pth.rename(folder / "checkpoint-300.pth"),
        "folder above": lambda: (pth.rename(folder / "checkpoint-300.pth"), folder)[1],
        "zip": lambda: packed(pth, "checkpoint-300.pth", folder / f"{NAME}.zip"),
        "folder in zip": lambda: packed(pth, f"{NAME}/checkpoint-300.pth", folder / "download"),
        "zip's folder": lambda: packed(pth, "checkpoint-300.pth", folder / "download"),
    }[place]()
    checkpoint = read_local(given)
    assert checkpoint.config.frontend.sample_rate == 32000
    assert checkpoint.config.training["mask_ratio"] == 0.6
    assert (checkpoint.provenance["sample_rate"], checkpoint.provenance["input_frames"]) == ("name", "name")


def test_the_folder_in_a_zip_counts_before_the_zips_name(pth, tmp_path):
    target = packed(pth, f"{NAME}/checkpoint-300.pth", tmp_path / "m2d_vit_base-80x64p16x16-x.zip")
    assert read_local(target).config.frontend.sample_rate == 32000


def test_the_source_of_a_zip_names_the_zip_and_the_member(pth, tmp_path):
    target = packed(pth, f"{NAME}/checkpoint-300.pth", tmp_path / "m.zip")
    checkpoint = read_local(target)
    assert checkpoint.config.training["source"] == f"m.zip/{NAME}/checkpoint-300.pth"
    assert checkpoint.path == target


def test_a_fault_in_a_zip_names_the_zip_and_the_member(pth, tmp_path):
    torch.save({"a": torch.zeros(1)}, pth)
    with pytest.raises(ValueError, match=r"m\.zip \(x/checkpoint\.pth\) is not a readable checkpoint"):
        read_local(packed(pth, "x/checkpoint.pth", tmp_path / "m.zip"))


def test_a_folder_of_several_lists_them(pth):
    (pth.parent / "other.ckpt").write_bytes(pth.read_bytes())
    with pytest.raises(
        ValueError, match=r"loose holds several .*: name one of 'other\.ckpt', 'weights\.pth'"
    ):
        read_local(pth.parent)


def test_a_folder_around_the_folder_will_do(pth, tmp_path):
    (tmp_path / "a").mkdir()
    pth.parent.rename(tmp_path / "a" / NAME)
    assert read_local(tmp_path / "a").config.frontend.sample_rate == 32000


def test_hidden_files_and_system_folders_do_not_count(pth):
    for name in (".weights.pth", "__MACOSX"):
        place = pth.parent / name
        if name == "__MACOSX":
            place.mkdir()
            place /= "x.pth"
        place.write_bytes(pth.read_bytes())
    with pytest.warns(UserWarning, match="16000"):
        hear_m2d.load_model(pth.parent)


def test_a_damaged_checkpoint_in_a_folder_is_not_passed_over(pth):
    data = pth.read_bytes()
    pth.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"weights\.pth is not a readable checkpoint"):
        read_local(pth.parent)


def test_an_unpacked_pth_that_is_zipped_again_is_read(pth, tmp_path):
    with zipfile.ZipFile(pth) as archive:
        archive.extractall(tmp_path / "unpacked")
    (inner,) = (tmp_path / "unpacked").iterdir()
    again = tmp_path / "again.zip"
    with zipfile.ZipFile(again, "w") as archive:
        for path in inner.rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "unpacked"))
    assert read_local(again).config.encoder.width == 64


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), os.mkfifo], ids=["empty folder", "pipe"])
def test_what_is_not_a_file_is_refused_without_waiting(tmp_path, make):
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(ValueError, match=r"odd is not a file|odd holds no file"):
        read_local(path)


def test_args_tell_where_names_do_not(pth, tmp_path):
    state = torch.load(pth)
    for rate in ("32k", 32000, "32000"):
        arguments = argparse.Namespace(input_size=[80, 70], sr=rate, model="m2d_x_vit_base", mask_ratio=0.7)
        torch.save({"model": state, "args": arguments}, pth)
        checkpoint = read_local(pth)
        assert checkpoint.config.frontend.sample_rate == 32000
        assert checkpoint.config.encoder.input_size == (80, 70)
        assert checkpoint.config.kind == "m2d_x"
        assert checkpoint.config.training["mask_ratio"] == 0.7
        assert (checkpoint.provenance["sample_rate"], checkpoint.provenance["input_frames"]) == (
            "file",
            "file",
        )
    arguments = argparse.Namespace(output_dir=f"/old/machine/{NAME}")
    torch.save({"model": state, "args": arguments}, pth)
    assert read_local(pth).config.frontend.sample_rate == 32000


@pytest.mark.parametrize(
    "arguments", [{"sr": "fast"}, {"sr": 0}, {"sr": 10**12}, {"sr": [1]}, {"sr": -16000}, {}]
)
def test_args_that_make_no_sense_are_not_believed(pth, arguments):
    sizes = {"input_size": [80, 10**9], "output_dir": 3, "model": ["x"], "epochs": float("nan")}
    torch.save({"model": torch.load(pth), "args": argparse.Namespace(**sizes, **arguments)}, pth)
    checkpoint = read_local(pth)
    assert checkpoint.config.encoder.input_size == (80, 64)
    assert checkpoint.provenance["sample_rate"] == "default"


@pytest.mark.parametrize("name", ["m2d-80x64p16x16p1k-x", "m2d-80x64p16x16p99999999k", "m2d-80x64p16x16p0k"])
def test_a_rate_that_cannot_be_is_not_believed(pth, name):
    assert read_local(pth.rename(pth.parent / f"{name}.pth")).config.frontend.sample_rate == 16000
