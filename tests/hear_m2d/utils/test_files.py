"""Files appear whole or not at all."""

import multiprocessing
import os
import stat
import subprocess
import sys

import pytest

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import (
    atomic_write,
    atomic_write_text,
    claim_folder,
    lock_folder,
    printable,
    read_json,
    remove_leftovers,
)


def test_a_file_appears_whole_with_its_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "grüß")
    assert path.read_bytes() == "grüß".encode()
    assert os.listdir(path.parent) == ["b.txt"]  # noqa: PTH208


def test_nothing_is_seen_under_the_final_name_before_the_end(tmp_path):
    path = tmp_path / "x"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_any_other(tmp_path):
    atomic_write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_writing_a_file_does_not_change_the_umask_of_the_process_for_a_moment(tmp_path, monkeypatch):
    """Files of other threads would be created with that umask; it can only be read by changing it."""

    def changed(mask):
        pytest.fail(f"the umask was set to {mask:o}")

    monkeypatch.setattr(os, "umask", changed)
    atomic_write_text(tmp_path / "x", "x")


@pytest.mark.parametrize("name", ["x" * 245, "x" * 255, "ü" * 127])
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    atomic_write_text(tmp_path / name, "long")
    assert (tmp_path / name).read_text() == "long"


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".other.tmp").write_text("of another program")
    script = (
        "import os, sys; from hear_m2d.utils.files import atomic_write\n"
        "with atomic_write(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".other.tmp"]


def test_names_that_are_no_utf8_stay_distinct_as_text():
    assert [printable(os.fsdecode(name)) for name in (b"\xe8.wav", b"\xe9.wav", "é.wav".encode())] == [
        r"\xe8.wav", r"\xe9.wav", "é.wav",
    ]  # fmt: skip


def test_two_different_byte_names_never_print_the_same():
    names = [b"\xe8.wav", rb"\xe8.wav", rb"\\xe8.wav", b"\\\xe8.wav", b"a\\b.wav", b"a\\\\b.wav"]
    assert len({printable(os.fsdecode(name)) for name in names}) == len(names)
    assert printable("a\\b.wav") == "a\\b.wav"


def test_a_folder_is_claimed_once_and_continued_with_the_same_content(tmp_path):
    folder = tmp_path / "out"
    assert claim_folder(folder, "run.json", {"model": "a", "sizes": (1, 2)}) == {
        "model": "a",
        "sizes": [1, 2],
    }
    assert claim_folder(folder, "run.json", {"model": "a", "sizes": (1, 2)})["model"] == "a"
    with pytest.raises(InputError, match="model is 'a' there, 'b' now"):
        claim_folder(folder, "run.json", {"model": "b"})


def test_a_folder_of_something_else_is_not_claimed(tmp_path):
    (tmp_path / ".hidden").touch()
    (tmp_path / "log").touch()
    claim_folder(tmp_path, "run.json", {}, ignore=["log"])
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"is not empty and has no run\.json, but log"):
        claim_folder(tmp_path, "run.json", {})
    with pytest.raises(InputError, match="is a file"):
        claim_folder(tmp_path / "log", "run.json", {})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_json_file_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is damaged.*Give another --out"):
        read_json(tmp_path / "x.json", hint="Give another --out")


def _locks(folder):
    with lock_folder(folder):
        pass


def test_a_second_process_cannot_lock_the_folder_until_the_first_ends(tmp_path):
    def exit_code():
        process = multiprocessing.get_context("fork").Process(target=_locks, args=(tmp_path,))
        process.start()
        process.join()
        return process.exitcode

    with lock_folder(tmp_path):
        assert exit_code() == 1
    assert exit_code() == 0
