"""Damaged checkpoint files: each reads right or is refused in a sentence; no crash, no hang, no code run."""

import argparse
import io
import random
import struct
import zipfile

import pytest
import torch

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.checkpoint.resolve import read_weights

ROUNDS = 500  # of each format


def damage(data: bytes, chance: random.Random, head: int) -> bytes:
    """One seeded mutation; half of them within the first ``head`` bytes, where the structure is."""
    broken = bytearray(data)
    reach = head if chance.random() < 0.5 else len(broken)
    place = chance.randrange(reach)
    kind = chance.randrange(6)
    if kind == 0:
        broken[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        broken[place : place + 8] = chance.randbytes(8)
    elif kind == 2:
        del broken[place:]
    elif kind == 3:
        del broken[place : place + chance.randrange(1, 65)]
    elif kind == 4:
        broken[place:place] = chance.randbytes(chance.randrange(1, 65))
    else:
        broken[place : place + 64] = bytes(64)
    return bytes(broken)


def repack(data: bytes, pickled: bytes) -> bytes:
    """The same .pth with another pickle inside: checksums of the zip are right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


@pytest.fixture
def ours(tiny_model, tmp_path):
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, tiny_model)
    return path


@pytest.fixture
def theirs(tiny_model, tmp_path):
    path = tmp_path / "m2d-80x4p80x2-x.pth"
    state = {"model": tiny_model.encoder.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(state, path)
    return path


def test_the_undamaged_files_read(ours, theirs, reads_right_or_says_why):
    assert reads_right_or_says_why(ours)
    assert reads_right_or_says_why(theirs)


def test_a_damaged_safetensors_gives_every_tensor_or_is_refused_in_a_sentence(ours, reads_right_or_says_why):
    data = ours.read_bytes()
    chance = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(ROUNDS):
        ours.write_bytes(damage(data, chance, header))
        refused += not reads_right_or_says_why(ours, exact=True)
    assert refused > ROUNDS * 0.8


def test_a_damaged_pth_gives_every_tensor_or_is_refused_in_a_sentence(theirs, reads_right_or_says_why):
    data = theirs.read_bytes()
    chance = random.Random(1)
    refused = 0
    for _ in range(ROUNDS):
        theirs.write_bytes(damage(data, chance, 4000))
        refused += not reads_right_or_says_why(theirs, exact=True)  # a zip has checksums
    assert refused > ROUNDS * 0.5


def test_a_damaged_pth_of_the_older_layout_reads_or_is_refused_in_a_sentence(
    theirs, tiny_model, reads_right_or_says_why
):
    state = {"model": tiny_model.encoder.state_dict()}
    torch.save(state, theirs, _use_new_zipfile_serialization=False)
    assert reads_right_or_says_why(theirs, exact=True)
    data = theirs.read_bytes()
    chance = random.Random(1)
    for _ in range(ROUNDS):
        theirs.write_bytes(damage(data, chance, 4000))
        reads_right_or_says_why(theirs)  # this layout has no checksums


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inside", ["theirs", "ours"])
def test_a_damaged_zip_gives_every_tensor_or_is_refused_in_a_sentence(
    request, tmp_path, reads_right_or_says_why, compression, inside
):
    member = request.getfixturevalue(inside)
    path = tmp_path / "m2d-80x4p80x2-x.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.write(member, f"m2d-80x4p80x2-x/{member.name}")
    assert reads_right_or_says_why(path, exact=True)
    data = path.read_bytes()
    chance = random.Random(3)
    refused = 0
    for _ in range(ROUNDS // 2):
        path.write_bytes(damage(data, chance, 400))
        refused += not reads_right_or_says_why(path, exact=True)
    assert refused > ROUNDS * 0.25


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # in a damaged text
def test_a_damaged_pickle_in_a_sound_zip_reads_or_is_refused_in_a_sentence(theirs, reads_right_or_says_why):
    data = theirs.read_bytes()
    with zipfile.ZipFile(theirs) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        pickled = archive.read(name)
    chance = random.Random(2)
    for _ in range(ROUNDS):
        theirs.write_bytes(repack(data, damage(pickled, chance, len(pickled))))
        reads_right_or_says_why(theirs)


CALLS = [
    ("os system", "touch {}"),
    ("posix system", "touch {}"),
    ("subprocess getoutput", "touch {}"),
    ("builtins exec", "open('{}', 'w')"),
    ("builtins eval", "open('{}', 'w')"),
    ("__builtin__ eval", "open('{}', 'w')"),
    ("torch load", "{}"),
    ("argparse FileType", "{}"),
    ("argparse Namespace.__init__.__globals__", "{}"),
]


@pytest.mark.parametrize(("function", "argument"), CALLS)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
@pytest.mark.parametrize("place", ["in a zip", "alone"])
def test_no_hand_written_pickle_runs_anything(theirs, tmp_path, function, argument, opcode, place):
    # In the opcodes that torch's reader knows: it must stop at the function, not at a strange opcode.
    witness = tmp_path / "it_ran"
    text = argument.replace("{}", str(witness)).encode()
    push = b"X" + struct.pack("<I", len(text)) + text
    module, name = function.encode().split()

    def short(word):
        return b"\x8c" + bytes([len(word)]) + word

    pickled = {
        "GLOBAL": b"\x80\x02c" + module + b"\n" + name + b"\n" + push + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + short(module) + short(name) + b"\x93" + push + b"\x85R.",
        "INST": b"\x80\x02(" + push + b"i" + module + b"\n" + name + b"\n.",
    }[opcode]
    theirs.write_bytes(repack(theirs.read_bytes(), pickled) if place == "in a zip" else pickled)
    with pytest.raises(ValueError, match=theirs.name):
        read_weights(theirs)
    assert not witness.exists()


def test_a_deeply_nested_pickle_is_refused(theirs):
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    theirs.write_bytes(repack(theirs.read_bytes(), deep))
    with pytest.raises(ValueError, match=theirs.name):
        read_weights(theirs)


def test_a_tensor_that_claims_more_than_its_storage_holds_is_refused(
    theirs, tiny_model, reads_right_or_says_why
):
    data = theirs.read_bytes()
    with zipfile.ZipFile(theirs) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        pickled = archive.read(name)
    # Every small integer of the pickle in turn becomes a huge one: sizes, strides, offsets.
    places = [i for i in range(len(pickled) - 1) if pickled[i : i + 1] == b"K"]
    for place in places[:: max(1, len(places) // 60)]:
        huge = pickled[:place] + b"J\xff\xff\xff\x7f" + pickled[place + 2 :]
        theirs.write_bytes(repack(data, huge))
        reads_right_or_says_why(theirs)
