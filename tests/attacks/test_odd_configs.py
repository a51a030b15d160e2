"""A config with one odd value, under a right checksum: refused in a sentence, or a model that embeds."""

import copy
import json
import warnings

import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.card import describe
from hear_m2d.checkpoint.format import (
    METADATA_KEY,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.heads import ProjectorConfig
from hear_m2d.model.hear_model import HearModel

ODD = [
    *(None, True, False, 0, -1, 1, 2**70, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x", "16000", "\x1b[2J\ud800", "a" * 5000),
    *([], [1], [1, 2], [80, 64, 1], ["a", "b"], [[1]], {}, {"a": 1}),
]
SIZES = EncoderConfig(input_size=(80, 32), patch_size=(16, 16), width=64, depth=1, heads=1)
WHOLE = ModelConfig(
    encoder=SIZES, labels=("a", "b"), head_width=64, projector=ProjectorConfig("semantic", 64, 64, 1)
)

TRAINING = {"notes": [], "ignored": [], "provenance": {"sample_rate": ""}, "guessed": {"sample_rate": ""}}


def fields(config, before=()):
    for name, value in config.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from fields(value, (*before, name))


PLACES = sorted(fields({**WHOLE.to_json(), "training": TRAINING}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_checkpoint(path, HearModel(WHOLE).eval())
    return read_tensors(path, METADATA_KEY)


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_an_odd_value_is_refused_in_a_sentence_or_the_model_embeds(whole, tmp_path, place):
    tensors, facts = whole
    path, copied = tmp_path / "odd.safetensors", tmp_path / "copy.safetensors"
    for value in ODD:
        config = copy.deepcopy({**facts, "training": TRAINING})
        part = config
        for name in place[:-1]:
            part = part[name]
        part[place[-1]] = value
        write_tensors(path, tensors, {METADATA_KEY: config})
        refused = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a rate that nobody knows
            try:
                json.dumps(describe(read_checkpoint(path)))
                model = hear_m2d.load_model(str(path))
            except ValueError as error:
                refused = str(error)
        if refused:
            assert path.name in refused
            assert len(refused.split()) >= 4, f"no sentence: {refused}"
            continue
        assert hear_m2d.get_scene_embeddings(torch.zeros(1, 4000), model).shape[0] == 1
        save_checkpoint(copied, model)
        read_checkpoint(copied)


def test_there_are_at_least_five_hundred_of_them():
    assert len(PLACES) * len(ODD) >= 500
