import os

import pytest

from hear_m2d.embed.inputs import collect_inputs


@pytest.fixture
def tree(tmp_path):
    """a/1.wav, a/2.flac, a/notes.txt, a/deep/3.ogg, b/1.wav."""
    for name in ("a/1.wav", "a/2.flac", "a/notes.txt", "a/deep/3.ogg", "b/1.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(inputs):
    return [clip.name for clip in inputs.clips]


def test_names_of_one_folder_are_relative_to_it(tree):
    found = collect_inputs([tree / "a"])
    assert names(found) == ["1.wav", "2.flac", "deep/3.ogg"]
    assert found.root == str(tree / "a")
    assert found.clips[2].path == str(tree / "a/deep/3.ogg")


def test_two_folders_with_the_same_names_give_different_names(tree):
    assert names(collect_inputs([tree / "a", tree / "b"])) == [
        "a/1.wav",
        "a/2.flac",
        "a/deep/3.ogg",
        "b/1.wav",
    ]


def test_files_folders_patterns_and_a_list_go_together_and_each_file_counts_once(tree):
    (tree / "clips.txt").write_text("a/1.wav\n\nb/1.wav\r\n")
    (tree / "b/link.wav").symlink_to(tree / "a/2.flac")
    given = [tree / "a/1.wav", tree / "a", tree / "b", f"{tree}/*/[12].*"]
    found = collect_inputs(given, tree / "clips.txt")
    assert names(found) == ["a/1.wav", "a/2.flac", "a/deep/3.ogg", "b/1.wav"]
    assert found.duplicates == 7  # a/1.wav three times more, a/2.flac, by its link too, and b/1.wav twice


def test_a_pattern_takes_audio_and_folders_only_and_its_fixed_part_is_the_root(tree):
    found = collect_inputs([f"{tree}/a/*"])
    assert names(found) == ["1.wav", "2.flac", "deep/3.ogg"]
    assert names(collect_inputs([f"{tree}/**/*.ogg"])) == ["a/deep/3.ogg"]


def test_a_file_with_the_characters_of_a_pattern_in_its_name_is_that_file(tree):
    (tree / "a/x[1]*.wav").touch()
    assert names(collect_inputs([tree / "a/x[1]*.wav"])) == ["x[1]*.wav"]


def test_a_list_counts_from_its_own_folder(tree, monkeypatch):
    monkeypatch.chdir("/")
    (tree / "a/list").write_text(f"1.wav\n../b/1.wav\n{tree}/a/deep\n")
    assert names(collect_inputs([], tree / "a/list")) == ["a/1.wav", "a/deep/3.ogg", "b/1.wav"]


def test_a_list_that_is_a_pipe_counts_from_the_current_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    read, write = os.pipe()  # as bash makes for `--list <(find a -name "*.wav")`
    os.write(write, b"a/1.wav\n./b/1.wav\n")
    os.close(write)
    assert names(collect_inputs([], f"/dev/fd/{read}")) == ["a/1.wav", "b/1.wav"]
    os.close(read)


def test_what_a_list_names_and_is_not_there_stays_to_be_reported(tree):
    (tree / "list").write_text("a/1.wav\na/nowhere.wav\n")
    assert names(collect_inputs([], tree / "list")) == ["a/1.wav", "a/nowhere.wav"]


def test_a_named_file_needs_no_suffix(tree):
    assert names(collect_inputs([tree / "a/notes.txt"])) == ["notes.txt"]


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ("nowhere", FileNotFoundError, "nowhere does not exist"),
        ("a/*.mp3", FileNotFoundError, "the pattern .* matches nothing"),
        ("empty", ValueError, "no audio in .*empty: no file ends in"),
    ],
)
def test_an_input_without_clips_is_refused(tree, given, error, sentence):
    (tree / "empty").mkdir()
    with pytest.raises(error, match=sentence):
        collect_inputs([tree / given])


def test_an_audio_file_given_as_a_list_is_refused(tree):
    (tree / "x.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    with pytest.raises(ValueError, match=r"x\.wav is not a list"):
        collect_inputs([], tree / "x.wav")
