"""Sharing models: pushed to a hub, fetched from it, saved in a folder; what may not be shared is refused."""

import copy
import dataclasses
import json
import pickle
import re

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.authors import is_authors_licence
from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.checkpoint.hub_files import fetch_from_hub
from hear_m2d.checkpoint.published import LICENCE

EVALUATE = """
import json, sys, time

time.sleep = lambda seconds: None  # huggingface_hub waits between its tries
import hear_m2d
from hear_m2d import HearModel, load_model


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
    return f"load_model({str(path)!r}).push_to_hub('lab/sounds', **{options!r})"


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
    address, *models, chosen = answers(
        hub,
        push(checkpoint_path),
        *map(load, names),
        "told(HearModel.from_pretrained('lab/sounds', layers=[0]))",
    )
    assert address.startswith(f"{hub.address}/lab/sounds/")
    assert {path.name for path in on_the_hub(hub).iterdir()} == {"checkpoint.safetensors", "README.md"}
    assert models == [wanted] * len(names)
    assert chosen == [*wanted[:2], [0]]

    asked = len(hub.requests())
    assert answers(hub, *map(load, names), HF_HUB_OFFLINE="1") == [wanted] * len(names)
    assert len(hub.requests()) == asked
    hub.stop()
    local = "told(HearModel.from_pretrained('lab/one', local_files_only=True))"
    assert answers(hub, *map(load, names), local) == [wanted] * (len(names) + 1)


def test_what_the_hub_refuses_is_said_in_a_sentence(hub, checkpoint_path):
    data = checkpoint_path.read_bytes()
    put_on_the_hub(hub, "lab/sounds", checkpoint_safetensors=data)
    put_on_the_hub(hub, "lab/two", a_pth=data, b_safetensors=data)
    put_on_the_hub(hub, "lab/none", notes_txt=b"?")
    expected = {
        "hf://lab/nosuch": "FileNotFoundError: there is no lab/nosuch on the hub, or it is private",
        "hf://lab/gated": "PermissionError: lab/gated on the hub is gated: ask for access at http",
        "hf://lab/broken": "ConnectionError: the hub answered 500 for lab/broken",
        "hf://lab/sounds@v9": "FileNotFoundError: lab/sounds on the hub has no branch, tag or commit v9",
        "hf://lab/sounds/b.pth": "FileNotFoundError: lab/sounds on the hub holds no file b.pth",
        "hf://lab/two": "ValueError: lab/two on the hub holds several files: a.pth, b.safetensors. Say which",
        "hf://lab/none": "FileNotFoundError: lab/none on the hub holds no checkpoint.safetensors, and no",
    }
    said = dict(zip(expected, answers(hub, *map(load, expected)), strict=True))
    assert {name: said[name][: len(words)] for name, words in expected.items()} == expected
    assert not [text for text in said.values() if "\n" in text]


def test_a_hub_out_of_reach_is_said_in_a_sentence(hub):
    local = "HearModel.from_pretrained('lab/sounds', local_files_only=True)"
    said = answers(hub, load("hf://lab/sounds"), local, HF_HUB_OFFLINE="1")
    for text, way in zip(said, ("HF_HUB_OFFLINE", "local_files_only"), strict=True):
        assert text.startswith(
            f"FileNotFoundError: hf://lab/sounds is not in the hub's cache, and {way} is set"
        )
    assert not hub.requests()
    hub.stop()
    (text,) = answers(hub, load("hf://lab/sounds/a.pth"))
    assert text.startswith(f"ConnectionError: the hub {hub.address} cannot be reached")


def test_a_push_needs_a_licence_and_a_token(hub, make_model, tmp_path):
    path = tmp_path / "silent.safetensors"
    save_checkpoint(path, make_model())
    assert told(path)[0] == "unknown"
    silent, refused = answers(hub, push(path), push(path, licence="mit", token="hf_wrong"))
    assert re.search(r'ValueError: .*does not say its licence.*licence="apache-2\.0"', silent)
    assert re.match(r"PermissionError: the hub refuses lab/sounds \(401\): log in", refused)
    assert not (hub.folder / "lab").exists()
    said = answers(hub, push(path, licence="CC-BY-4.0"), load("hf://lab/sounds"))
    assert said[1][0] == "CC-BY-4.0", said
    assert "license: cc-by-4.0" in (on_the_hub(hub) / "README.md").read_text()


@pytest.mark.parametrize(
    "licence", [LICENCE, "ntt software license\n agreement for EVALUATION", "NTT evaluation"]
)
def test_the_authors_weights_are_neither_pushed_nor_saved(make_model, tmp_path, licence):
    model = make_model(licence=licence)
    assert is_authors_licence(licence)
    for share in (
        lambda: model.save_pretrained(tmp_path / "out"),
        lambda: model.push_to_hub("lab/sounds", licence="apache-2.0"),
        lambda: make_model(licence="mit").push_to_hub("lab/sounds", licence=licence),
    ):
        with pytest.raises(ValueError, match="does not allow passing it on"):
            share()
    assert not list(tmp_path.iterdir())
    assert not is_authors_licence("Apache-2.0")


def test_a_folder_holds_a_checkpoint_and_a_card_and_comes_back(make_model, noise, tmp_path):
    model = make_model(licence="MIT", training={"recipe": "tiny"})
    model.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "checkpoint.safetensors",
    ]
    again = hear_m2d.HearModel.from_pretrained(tmp_path / "out", timestamps="dense")
    assert (again.config, again.options.timestamps, again.training) == (model.config, "dense", False)
    assert torch.equal(again.scene_embeddings(noise(2, 16000)), model.scene_embeddings(noise(2, 16000)))
    file = tmp_path / "out" / "checkpoint.safetensors"
    assert hear_m2d.HearModel.from_pretrained(str(file)).config == model.config
    with pytest.raises(ValueError, match=r"option 'timestamp'.*timestamps"):
        hear_m2d.HearModel.from_pretrained(tmp_path / "out", timestamp="dense")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not a file"):
        hear_m2d.HearModel.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no checkpoint nosuch"):
        hear_m2d.HearModel.from_pretrained("nosuch")


def test_what_lies_in_the_folder_already_stays(make_model, tmp_path):
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("mine")
    make_model().save_pretrained(tmp_path)
    for name in ("README.md", "config.json"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_push_to_what_is_no_repository_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match="sounds is not a name on the hub: write OWNER/REPO"):
        make_model(licence="MIT").save_pretrained(tmp_path / "sounds", push_to_hub=True)
    with pytest.raises(TypeError, match="private: known only with push_to_hub=True"):
        make_model(licence="MIT").save_pretrained(tmp_path / "other", private=True)
    assert not (tmp_path / "other").exists()


def test_the_card_says_what_the_checkpoint_says(make_model):
    model = make_model(licence="Apache-2.0", training={"recipe": "laptop_m2d", "steps": 300}, rate=32000)
    card = model.generate_model_card(name="lab/sounds", description="Made of **birds**.")
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
    card = make_model(licence=evil, kind=evil, training={"```": "```\n# heading"}).generate_model_card()
    assert (card.data.license, card.data.to_dict()["license_name"][0]) == ("other", "x")
    assert "<script>" not in card.text
    assert card.text.count("\n# ") <= 1
    assert "````json" in card.text


def test_the_mixin_leaves_copies_pickles_and_inference_mode_alone(make_model, noise):
    with torch.inference_mode():
        model = make_model(options={"layers": [0, 1]})
    expected = model.scene_embeddings(noise(1, 8000))
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.scene_embeddings(noise(1, 8000)), expected)
        assert (other.config, other.options) == (model.config, model.options)


def test_the_mixin_keeps_no_second_config(make_model):
    model = make_model()
    held = [value for value in vars(model).values() if dataclasses.is_dataclass(value)]
    assert sorted(type(value).__name__ for value in held) == ["ModelConfig", "Options"]
    assert model._hub_mixin_config is None


@pytest.mark.parametrize("address", ["hf://a", "hf://a/b@/c", "hf://a//b", "hf://a b/c", "hf://../b"])
def test_an_address_that_names_no_repository_is_refused(address):
    with pytest.raises(ValueError, match="is not an address on the hub"):
        fetch_from_hub(address)
