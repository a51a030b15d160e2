"""Names to files: what is found, and what is said when it is not."""

import hashlib
import json
import logging
import pickle
import re
import subprocess
import sys

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.format import read_checkpoint, save_checkpoint
from hear_m2d.checkpoint.registry import OURS, SHA256, read_entries
from hear_m2d.checkpoint.resolve import DEFAULT, read_weights


@pytest.mark.parametrize("name", [(), ("",)])
def test_load_model_without_a_name_loads_the_model_of_the_package(name):
    assert hear_m2d.load_model(*name).config == read_checkpoint(DEFAULT).config


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere\.safetensors"):
        hear_m2d.load_model(tmp_path / "nowhere.safetensors")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file that ends in \.safetensors"):
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


def answer_of_the_command(*arguments):
    command = [sys.executable, "-m", "hear_m2d.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def same(model, other):
    state = other.state_dict()
    return model.config == other.config and all(
        torch.equal(t, state[n]) for n, t in model.state_dict().items()
    )


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Write a lab's own registry: ``register({name: entry, …})``."""

    def write(table):
        path = tmp_path / "lab.json"
        path.write_text(table if isinstance(table, str) else json.dumps(table))
        monkeypatch.setenv("HEAR_M2D_REGISTRY", str(path))
        return path

    return write


def test_an_address_is_a_name_and_needs_no_network_the_second_time(web, cache, checkpoint_path):
    web.pages["/models/model.safetensors"] = checkpoint_path.read_bytes()
    url = web.url + "/models/model.safetensors"
    model = hear_m2d.load_model(url)
    assert same(model, hear_m2d.load_model(checkpoint_path))
    assert same(model, hear_m2d.load_model(url))
    assert web.requests == ["/models/model.safetensors"]


def test_an_address_may_end_in_its_sha256(web, cache, checkpoint_path):
    data = checkpoint_path.read_bytes()
    web.pages["/a.safetensors"] = data
    digest = hashlib.sha256(data).hexdigest()
    hear_m2d.load_model(f"{web.url}/a.safetensors#sha256={digest.upper()}")
    for address in (f"{web.url}/b.safetensors", checkpoint_path.as_uri()):
        web.pages["/b.safetensors"] = data
        with pytest.raises(ValueError, match=f"{digest}.*{'0' * 64}|{'0' * 64}.*{digest}"):
            hear_m2d.load_model(f"{address}#sha256={'0' * 64}")


@pytest.mark.parametrize("fragment", ["sha256=12", "md5=" + "0" * 64, "part", ""])
def test_another_ending_of_an_address_is_refused(web, cache, fragment):
    with pytest.raises(ValueError, match="a # is followed by sha256= and 64 hex digits"):
        hear_m2d.load_model(f"{web.url}/a.safetensors#{fragment}")
    assert not web.requests


def test_what_an_address_gives_is_not_kept_where_it_is_no_checkpoint(web, cache, checkpoint_path):
    web.pages["/a.safetensors"] = b"<html>log in first</html>"
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"http.*/a\.safetensors did not give a checkpoint: .*not a readable"
        ):
            hear_m2d.load_model(web.url + "/a.safetensors")
    assert len(web.requests) == 2
    web.pages["/a.safetensors"] = checkpoint_path.read_bytes()[:-100]  # cut, with a length that fits
    with pytest.raises(ValueError, match="did not give a checkpoint"):
        hear_m2d.load_model(web.url + "/a.safetensors")
    web.pages["/a.safetensors"] = checkpoint_path.read_bytes()
    hear_m2d.load_model(web.url + "/a.safetensors")


def test_a_published_file_keeps_its_sample_rate_through_an_address(web, cache, tmp_path, make_model):
    folder = "m2d_vit_base-80x64p16x16p32k-240413_enconly"
    torch.save(dict(make_model().encoder.state_dict()), tmp_path / "file.pth")
    web.pages[f"/{folder}/checkpoint-300.pth"] = (tmp_path / "file.pth").read_bytes()
    assert hear_m2d.load_model(f"{web.url}/{folder}/checkpoint-300.pth").sample_rate == 32000


def test_a_file_address_is_read_where_it_lies(checkpoint_path, cache):
    spaced = checkpoint_path.rename(checkpoint_path.with_name("a model.safetensors"))
    assert same(hear_m2d.load_model(spaced.as_uri()), hear_m2d.load_model(spaced))
    assert not cache.exists()


@pytest.mark.parametrize(
    "address",
    [
        "ftp://a/b",
        "s3://bucket/key",
        "https://",
        "http://[",
        "file://host/a",
        "hf://",
        "hf://gpt2",
        "hf:///a/b",
        "file://",
        "http://a..b/c",
        "http://host:99999/c",
        "http://host:port/c",
    ],
)
def test_an_address_that_is_none_is_refused_in_a_sentence(cache, address):
    with pytest.raises(ValueError, match=r"begins with|is not an address|Failed to parse"):
        hear_m2d.load_model(address)


def test_a_name_of_a_labs_registry_is_downloaded_and_checked(web, cache, checkpoint_path, register, caplog):
    data = checkpoint_path.read_bytes()
    web.pages["/lab.safetensors"] = data
    entry = {
        "url": web.url + "/lab.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "MIT",
    }
    register({"lab-model_v1": entry})
    with caplog.at_level(logging.INFO, "hear_m2d"):
        assert same(hear_m2d.load_model("lab-model_v1"), hear_m2d.load_model(checkpoint_path))
    assert "lab-model_v1: license MIT" in caplog.text
    register({"lab-model_v1": entry, "other": {**entry, "sha256": "1" * 64}})
    with pytest.raises(ValueError, match=f"expected {'1' * 64} but got {entry['sha256']}"):
        hear_m2d.load_model("other")
    hear_m2d.load_model("lab-model_v1")
    assert len(web.requests) == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("{", "must hold a JSON object"),
        ("[]", "must hold a JSON object (a list)"),
        ({"lab": "https://a/b"}, "entry 'lab': an entry is an object"),
        ({"lab": {"url": "https://a/b"}}, "entry 'lab': url must begin"),
        ({"lab": {"url": "https://a/b", "sha": ""}}, "entry 'lab': unknown field 'sha'. Did you mean sha256"),
        ({"lab": {"url": "ftp://a/b", "sha256": "0" * 64}}, "entry 'lab': url must begin"),
        ({"lab": {"url": "https://a/b", "sha256": "0" * 63}}, "entry 'lab': url must begin"),
        ({"lab": {"url": 3, "sha256": "0" * 64}}, "entry 'lab': an entry is an object of texts"),
    ],
)
def test_a_malformed_registry_is_named_with_its_entry(register, table, words):
    path = register(table)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(words)}"):
        hear_m2d.load_model("lab")


def test_a_registry_that_is_not_there_is_named_and_hinders_no_path(monkeypatch, checkpoint_path):
    monkeypatch.setenv("HEAR_M2D_REGISTRY", "/nowhere/lab.json")
    with pytest.raises(
        FileNotFoundError, match=r"HEAR_M2D_REGISTRY is '/nowhere/lab.json', which is not a file"
    ):
        hear_m2d.load_model("lab")
    hear_m2d.load_model(checkpoint_path)


def test_our_own_table_is_readable():
    assert all(entry.page or SHA256.fullmatch(entry.sha256) for entry in read_entries(OURS).values())


def test_a_name_that_is_almost_a_known_one_shows_the_nearest(register):
    register({"lab-model": {"url": "https://lab.example/a", "sha256": "0" * 64}})
    with pytest.raises(FileNotFoundError, match=r"no checkpoint lab-modle: .*Did you mean lab-model"):
        hear_m2d.load_model("lab-modle")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*221006-mr7") as caught:
        hear_m2d.load_model("m2d_vit_base-80x608p16x16-221006-mr8")
    assert str(caught.value).count("221006-mr7") == 1
    with pytest.raises(FileNotFoundError, match="no checkpoint xyzzy: there is no such file"):
        hear_m2d.load_model("xyzzy")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("m2d_vit_base-80x608p16x16-221006-mr7", "m2d/releases/tag/v0.1.0"),
        ("M2D_ViT_base-80x608p16x16-221006-mr7", "m2d/releases/tag/v0.1.0"),
        ("m2d_s_vit_base-80x400p80x2-230201.zip", "m2d/releases/tag/v0.2.0"),
        ("models/m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d/weights.pth", "m2d/releases/tag/v0.3.0"),
        ("80x512p16x16_paper", "msm-mae/releases/tag/v0.0.1"),
    ],
)
def test_an_authors_name_says_where_it_is_under_which_terms_and_what_to_type(name, page):
    with pytest.raises(FileNotFoundError) as caught:
        hear_m2d.load_model(name)
    for words in (
        f"https://github.com/nttcslab/{page}",
        "NTT Software License Agreement for Evaluation",
        "hear-m2d convert FILE OUT.safetensors",
        "load_model('FILE')",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/nttcslab/m2d/releases/download/v0.1.0/m2d_vit_base-80x608p16x16-221006-mr7.zip",
        "HTTPS://me@GitHub.com:443/NTTCSLAB/msm-mae/releases/download/v0.0.1/anything.zip",
    ],
)
def test_the_authors_weights_are_not_downloaded_by_address_either(cache, address, register):
    register({"ours": {"url": address.replace("HTTPS", "https"), "sha256": "0" * 64}})
    for name in (address, "ours"):
        with pytest.raises(ValueError, match="hear-m2d does not download them"):
            hear_m2d.load_model(name)
    assert not cache.exists()


def test_the_commands_take_names_too(web, cache, checkpoint_path, register):
    data = checkpoint_path.read_bytes()
    web.pages["/lab.safetensors"] = data
    register({"lab": {"url": web.url + "/lab.safetensors", "sha256": hashlib.sha256(data).hexdigest()}})
    done = answer_of_the_command("info", "lab", "--json")
    assert json.loads(done.stdout)["licence"] == "Apache-2.0"
    assert "downloading http" in done.stderr
    done = answer_of_the_command("info", "lob")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: no checkpoint lob: .*Did you mean lab.*\n", done.stderr)
