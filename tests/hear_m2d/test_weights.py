"""Names to files: what is found, and what is said when it is not."""

import pickle

import pytest

import hear_m2d
from hear_m2d.checkpoint import save_checkpoint
from hear_m2d.weights import read_weights


@pytest.mark.parametrize("name", [(), ("",)])
def test_load_model_without_a_name_says_how_to_get_a_checkpoint(name):
    with pytest.raises(ValueError, match=r"hear-m2d pretrain .*load_model\("):
        hear_m2d.load_model(*name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere\.safetensors"):
        hear_m2d.load_model(tmp_path / "nowhere.safetensors")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        hear_m2d.load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"hello, I am text\n" * 9, b"x", b"\x00" * 64, b"{}", b"\x80", b"PK", b"PK\x03\x04", b"\x80\x02."],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path, content, suffix):
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd.* is not a readable"):
        hear_m2d.load_model(path)


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "empty.pth"
    path.touch()
    with pytest.raises(ValueError, match="is empty"):
        hear_m2d.load_model(path)


def test_the_content_decides_not_the_suffix(checkpoint_path, fixtures_dir, tmp_path):
    ours = tmp_path / "ours.pth"
    ours.write_bytes(checkpoint_path.read_bytes())
    assert read_weights(ours).config == read_weights(checkpoint_path).config
    (published,) = fixtures_dir.glob("*fxa_enconly/*.pth")
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_bytes(published.read_bytes())
    assert read_weights(theirs).config.encoder == read_weights(published).config.encoder


@pytest.mark.parametrize("first", [b"\x80", b"PK"])
def test_a_safetensors_that_begins_like_a_pickle_or_a_zip_still_loads(make_model, tmp_path, first):
    # The file begins with its header's length, a multiple of 8: one in 32 begins with 0x80.
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, make_model(training={"note": ""}))
    size = int.from_bytes(path.read_bytes()[:8], "little")
    missing = (int.from_bytes(first, "little") - size) % 256 ** len(first)
    model = make_model(training={"note": "x" * missing})
    save_checkpoint(path, model)
    assert path.read_bytes().startswith(first)
    assert hear_m2d.load_model(path).config == model.config


def test_a_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"plain\.pkl"):
        hear_m2d.load_model(path)
