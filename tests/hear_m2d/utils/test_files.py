"""Files appear whole or not at all."""

import os
import stat
import subprocess
import sys

import pytest

from hear_m2d.utils.files import atomic_write, atomic_write_text, printable, remove_leftovers


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
