"""Zips made to harm: bombs, lying headers, names that climb out, encryption, members of something else."""

import io
import os
import struct
import zipfile

import pytest
import torch

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.checkpoint.resolve import read_weights


@pytest.fixture
def pth(tiny_model):
    """The bytes of a small .pth."""
    out = io.BytesIO()
    torch.save({"model": tiny_model.encoder.state_dict()}, out)
    return out.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m2d-80x4p80x2-x.zip"


def write(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def headers(data):
    """The places of the local and of the central header of a zip's one member."""
    return data.index(b"PK\x03\x04"), data.rindex(b"PK\x01\x02")


def refused(path, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_weights(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked(path):
    write(path, {"x/checkpoint.pth": b"PK\x03\x04" + bytes(2**28)})
    assert path.stat().st_size < 2**20
    refused(path, "become 268435460 bytes: refused")


@pytest.mark.parametrize("claim", [0, 1, 1000, 2**31])
@pytest.mark.parametrize("which", ["local", "central", "both"])
def test_a_header_that_lies_about_the_size_gives_the_tensors_or_a_sentence(
    path, pth, reads_right_or_says_why, claim, which
):
    write(path, {"m2d-80x4p80x2-x/checkpoint.pth": pth})
    data = bytearray(path.read_bytes())
    local, central = headers(data)
    if which != "central":
        data[local + 22 : local + 26] = struct.pack("<I", claim)
    if which != "local":
        data[central + 24 : central + 28] = struct.pack("<I", claim)
    path.write_bytes(data)
    read = reads_right_or_says_why(path, exact=True)
    assert read == (which == "local")  # the central directory counts


def test_a_stored_member_that_claims_more_than_the_file_has_is_refused(tmp_path, pth):
    path = tmp_path / "m2d-80x4p80x2-x.pth"
    data = bytearray(pth)
    central = data.index(b"PK\x01\x02")
    for place in (central + 20, central + 24):  # of its first member, the pickle
        data[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    refused(path, "not a readable checkpoint")


def test_a_compressed_member_of_a_pth_is_refused(tmp_path, pth):
    path = tmp_path / "m2d-80x4p80x2-x.pth"
    with zipfile.ZipFile(io.BytesIO(pth)) as old:
        write(path, {name: old.read(name) for name in old.namelist()})
    refused(path, "compressed, which torch never does")


def test_an_encrypted_member_is_refused(path, pth):
    write(path, {"x/checkpoint.pth": pth})
    data = bytearray(path.read_bytes())
    local, central = headers(data)
    data[local + 6] |= 1
    data[central + 8] |= 1
    path.write_bytes(data)
    refused(path, "encrypted")


@pytest.mark.parametrize("name", ["../../evil.pth", "/etc/evil.pth", "C:\\evil.pth", "x/../../../evil.pth"])
def test_names_that_climb_out_write_nothing(path, pth, tmp_path, monkeypatch, name):
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    write(path, {name: pth})
    before = sorted(tmp_path.rglob("*"))
    assert read_weights(path).config.encoder.width == 64
    assert sorted(tmp_path.rglob("*")) == before
    assert not os.path.exists("/etc/evil.pth")  # noqa: PTH110


def test_a_zip_in_a_zip_is_not_followed(path, pth, tmp_path):
    inner = tmp_path / "inner.zip"
    write(inner, {"checkpoint.pth": pth})
    write(path, {"inner.zip": inner.read_bytes()})
    refused(path, "holds no file that ends in .safetensors")


def test_a_zip_without_a_checkpoint_is_refused(path):
    write(path, {"readme.txt": b"hello", "weights.bin": bytes(99)})
    refused(path, "holds no file that ends in .safetensors")
    write(path, {"readme.txt": b"hello", "empty.pth": b""})
    refused(path, "not a readable checkpoint")


def test_several_checkpoints_in_a_zip_are_listed(path, pth, tiny_model, tmp_path):
    ours = tmp_path / "ours.safetensors"
    save_checkpoint(ours, tiny_model)
    write(
        path,
        {"a/checkpoint-100.pth": pth, "b/ours.safetensors": ours.read_bytes()},
    )
    refused(path, r"'a/checkpoint-100\.pth', 'b/ours\.safetensors'")


def test_a_name_that_steers_the_terminal_is_escaped(path, pth):
    write(path, {"a\x1b[2J/one.pth": pth, "b/two.pth": pth})
    assert "\x1b" not in refused(path, r"a\\x1b\[2J/one\.pth")
