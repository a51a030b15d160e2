"""Files are found by suffix, in one order; what cannot be searched is never left out silently."""

import os

import pytest
import soundfile

from hear_m2d.audio import AUDIO_SUFFIXES, AudioError, find_audio, read_audio

# Not found by suffix: headerless files, MATLAB's, and a sampler's whose suffix means another format today.
LEFT_OUT = {"RAW", "MAT4", "MAT5", "MPC2K"}


@pytest.fixture
def locked(tmp_path, refuse_folder):
    """A folder with ``a.wav`` and a folder that cannot be read, also not by root."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/b.wav").touch()
    refuse_folder("locked")
    return tmp_path


def test_a_folder_that_cannot_be_read_is_an_error(locked):
    with pytest.raises(PermissionError, match="locked"):
        find_audio(locked)


def test_a_folder_that_cannot_be_read_is_reported_to_a_caller_that_asks_for_it(locked):
    errors = []
    assert find_audio(locked, on_error=errors.append) == [locked / "a.wav"]
    assert [error.filename for error in errors] == [str(locked / "locked")]


@pytest.mark.parametrize("format_name", sorted(soundfile.available_formats()))
def test_every_format_of_libsndfile_has_a_suffix(format_name):
    other = {"IRCAM": ".sf", "NIST": ".nist", "SVX": ".svx"}
    suffix = other.get(format_name, f".{format_name.lower()}")
    assert (suffix in AUDIO_SUFFIXES) != (format_name in LEFT_OUT)


def test_find_audio_sorts_by_relative_path_and_skips_what_is_hidden_or_no_audio(tmp_path):
    for name in (
        "b.wav",
        "a/z.FLAC",
        "a/b/c.mp3",
        "a-b.ogg",
        ".hidden.wav",
        ".cache/x.wav",
        "notes.txt",
        "a/._z.wav",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.wav").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["a-b.ogg", "a/b/c.mp3", "a/z.FLAC", "b.wav"]


def test_find_audio_follows_links_each_folder_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.wav").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.wav").symlink_to(tmp_path / "elsewhere" / "x.wav")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert [path.relative_to(root).as_posix() for path in find_audio(root)] == ["link.wav", "linked/x.wav"]


def test_what_is_named_like_audio_and_is_no_file_is_not_left_out_silently(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    found = find_audio(tmp_path)
    assert [path.name for path in found] == ["broken.wav", "itself.wav", "pipe.wav"]
    for path in found:
        with pytest.raises((AudioError, OSError)):
            read_audio(path, 16000)


def test_find_audio_takes_one_file_and_refuses_what_is_none(tmp_path):
    (tmp_path / "x.wav").touch()
    (tmp_path / "x.txt").touch()
    assert find_audio(tmp_path / "x.wav") == [tmp_path / "x.wav"]
    with pytest.raises(ValueError, match=r"not an audio file by its suffix.*\.wav"):
        find_audio(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_audio(tmp_path / "nowhere")
