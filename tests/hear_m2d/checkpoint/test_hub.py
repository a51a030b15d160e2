"""Sharing models: pushed to a hub, fetched from it, saved in a folder; what may not be shared is refused."""

import copy
import json
import pickle
import re

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.card import model_card
from hear_m2d.checkpoint.download import fetch_from_hub
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.checkpoint.hub import push_to_hub, save_pretrained
from hear_m2d.checkpoint.published import LICENCE
from hear_m2d.checkpoint.registry import is_authors_license

EVALUATE = """
import json, sys, time

waits = []
time.sleep = waits.append  # huggingface_hub waits between its tries: count the seconds instead
import hear_m2d
from hear_m2d import load_model
from hear_m2d.checkpoint.hub import push_to_hub


def told(model):
    weights = float(sum(p.detach().double().sum() for p in model.parameters()))
    return [model.config.licence, weights, model.options.layers]


answers = []
for expression in sys.argv[1:]:
    try:
        answers.append(eval(expression))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
json.dump(answers, sys.stdout)
"""


def answers(hub, *expressions, **environment):
    """Evaluate in one process beside the hub: each value, or the error in words. Nothing else is printed."""
    done = hub.python(EVALUATE, *expressions, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def told(path):
    model = hear_m2d.load_model(path)
    return [model.config.licence, float(sum(p.detach().double().sum() for p in model.parameters())), None]


def push(path, **options):
    return f"push_to_hub(load_model({str(path)!r}), 'lab/sounds', **{options!r})"


def load(name):
    return f"told(load_model({name!r}))"


def on_the_hub(hub, repo="lab/sounds"):
    refs = json.loads((hub.folder / repo / "refs.json").read_text())
    return hub.folder / repo / refs["main"]


def put_on_the_hub(hub, repo, **files):
    """A repository with such files, whatever is in them."""
    folder = hub.folder / repo / "0123456789012345678901234567890123456789"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    (hub.folder / repo / "refs.json").write_text(json.dumps({"main": folder.name}))


def test_what_is_pushed_comes_back_by_every_way_and_then_without_the_hub(hub, checkpoint_path):
    wanted = told(checkpoint_path)
    put_on_the_hub(hub, "lab/one", mine_safetensors=checkpoint_path.read_bytes(), notes_txt=b"?")
    names = [
        "hf://lab/sounds",
        "hf://lab/sounds@main",
        "hf://lab/sounds/checkpoint.safetensors",
        "hf://lab/one",
    ]
    address, *models = answers(hub, push(checkpoint_path), *map(load, names))
    assert address.startswith(f"{hub.address}/lab/sounds/")
    assert {path.name for path in on_the_hub(hub).iterdir()} == {"checkpoint.safetensors", "README.md"}
    assert models == [wanted] * len(names)

    asked = len(hub.requests())
    assert answers(hub, *map(load, names), HF_HUB_OFFLINE="1") == [wanted] * len(names)
    assert len(hub.requests()) == asked
    hub.stop()
    *models, waited_s = answers(hub, *map(load, names), "sum(waits)")
    assert models == [wanted] * len(names)
    assert waited_s < 60  # the hub is not asked again and again where the cache has the file


def test_what_the_hub_refuses_is_said_in_a_sentence(hub, checkpoint_path):
    data = checkpoint_path.read_bytes()
    put_on_the_hub(hub, "lab/sounds", checkpoint_safetensors=data)
    put_on_the_hub(hub, "lab/two", a_pth=data, b_safetensors=data)
    put_on_the_hub(hub, "lab/none", notes_txt=b"?")
    expected = {
        "hf://lab/nosuch": "FileNotFoundError",
        "hf://lab/gated": "PermissionError",
        "hf://lab/broken": "ConnectionError",
        "hf://lab/sounds@v9": "FileNotFoundError",
        "hf://lab/sounds/b.pth": "FileNotFoundError",
        "hf://lab/two": "InputError: hf://lab/two holds several checkpoints: name one of 'a.pth', ",
        "hf://lab/none": "InputError: hf://lab/none holds no file that ends in .safetensors, .pth",
    }
    said = dict(zip(expected, answers(hub, *map(load, expected)), strict=True))
    assert {name: said[name][: len(words)] for name, words in expected.items()} == expected
    for name, text in said.items():
        assert name in text
        assert "\n" not in text


def test_a_hub_out_of_reach_is_said_in_a_sentence(hub):
    (text,) = answers(hub, load("hf://lab/sounds/a.pth"), HF_HUB_OFFLINE="1")
    assert text.startswith("ConnectionError: hf://lab/sounds/a.pth: ")
    assert not hub.requests()
    hub.stop()
    (text,) = answers(hub, load("hf://lab/sounds/a.pth"))
    assert text.startswith("ConnectionError: hf://lab/sounds/a.pth: ")


def test_a_push_needs_a_license_and_a_token(hub, make_model, tmp_path):
    path = tmp_path / "silent.safetensors"
    save_checkpoint(path, make_model())
    assert told(path)[0] == "unknown"
    silent, refused = answers(hub, push(path), push(path, license="mit", token="hf_wrong"))
    assert re.search(r'InputError: .*does not say its license.*license="apache-2\.0"', silent)
    assert re.match(r"PermissionError: lab/sounds: .*401", refused)
    assert not (hub.folder / "lab").exists()
    said = answers(hub, push(path, license="CC-BY-4.0"), load("hf://lab/sounds"))
    assert said[1][0] == "CC-BY-4.0", said
    assert "license: cc-by-4.0" in (on_the_hub(hub) / "README.md").read_text()


@pytest.mark.parametrize(
    "licence", [LICENCE, "ntt software license\n agreement for EVALUATION", "NTT evaluation"]
)
def test_the_authors_weights_are_neither_pushed_nor_saved(make_model, tmp_path, licence):
    model = make_model(licence=licence)
    assert is_authors_license(licence)
    for share in (
        lambda: save_pretrained(model, tmp_path / "out"),
        lambda: push_to_hub(model, "lab/sounds", license="apache-2.0"),
        lambda: push_to_hub(make_model(licence="mit"), "lab/sounds", license=licence),
    ):
        with pytest.raises(ValueError, match="does not allow passing it on"):
            share()
    assert not list(tmp_path.iterdir())
    assert not is_authors_license("Apache-2.0")


def test_a_folder_holds_a_checkpoint_and_a_card_and_comes_back(make_model, noise, tmp_path):
    model = make_model(licence="MIT", training={"recipe": "tiny"})
    save_pretrained(model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "checkpoint.safetensors",
    ]
    again = hear_m2d.load_model(tmp_path / "out", timestamps="dense")
    assert (again.config, again.options.timestamps, again.training) == (model.config, "dense", False)
    assert torch.equal(again.scene_embeddings(noise(2, 16000)), model.scene_embeddings(noise(2, 16000)))


def test_what_lies_in_the_folder_already_stays(make_model, tmp_path):
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("mine")
    save_pretrained(make_model(), tmp_path)
    for name in ("README.md", "config.json"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_push_to_a_name_without_an_owner_is_refused(make_model):
    with pytest.raises(ValueError, match="sounds is not a name on the hub: write OWNER/REPO"):
        push_to_hub(make_model(licence="MIT"), "sounds")


def test_the_card_says_what_the_checkpoint_says(make_model):
    model = make_model(licence="Apache-2.0", training={"recipe": "laptop_m2d", "steps": 300}, rate=32000)
    card = model_card(model.config, name="lab/sounds", description="Made of **birds**.")
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "hear-m2d",
        "pipeline_tag": "feature-extraction",
        "tags": ["audio", "audio-embeddings", "self-supervised", "hear", "hear-m2d", "m2d"],
    }
    expected = (
        "# sounds",
        "Made of **birds**.",
        "32000 Hz",
        '"laptop_m2d"',
        "hf://lab/sounds",
        "niizumi2023m2d",
    )
    for words in (*expected, "2 blocks, width 64", "-7.1, 4.2"):
        assert words in card.content


def test_the_card_of_a_hostile_checkpoint_stays_a_card(make_model):
    evil = "x\n---\nlicense: mit\n---\n| <script>alert(1)</script> |"
    card = model_card(make_model(licence=evil, kind=evil, training={"```": "```\n# heading"}).config)
    assert (card.data.license, card.data.to_dict()["license_name"][0]) == ("other", "x")
    assert "<script>" not in card.text
    assert card.text.count("\n# ") <= 1
    assert "````json" in card.text


def test_a_model_can_be_copied_and_pickled(make_model, noise):
    with torch.inference_mode():
        model = make_model(options={"layers": [0, 1]})
    expected = model.scene_embeddings(noise(1, 8000))
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.scene_embeddings(noise(1, 8000)), expected)
        assert (other.config, other.options) == (model.config, model.options)


@pytest.mark.parametrize("address", ["hf://a", "hf://a/b@/c", "hf://a//b", "hf://a b/c", "hf://../b"])
def test_an_address_that_names_no_repository_is_refused(address):
    with pytest.raises(ValueError, match="is not an address on the hub"):
        fetch_from_hub(address)
