"""Objective fixtures: published weights under our names, and a loader."""

import json
import re

import numpy as np
import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.pretrain.objectives.decoder import DecoderConfig

OURS = (
    (r"^decoder_(embed|blocks|norm|pred)\b", r"decoder.\1"),
    (r"^target_(blocks|norm)\b", r"target.\1"),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^(offline_predictor)\b", r"\1"),
    (r"^(cls_token|pos_embed|patch_embed|blocks|norm)\b", r"encoder.\1"),
)


def our_name(name):
    for pattern, replacement in OURS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    raise KeyError(name)


def published_weights(arrays, prefix):
    """Map names; q and v biases become the first and last third of qkv.bias, whose middle third is zero."""
    published = {
        k.removeprefix(prefix): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(prefix)
    }
    weights = {}
    for name, value in published.items():
        if name in ("norm_stats", "decoder_pos_embed") or name.endswith("v_bias"):
            continue
        if name.endswith("q_bias"):
            v_bias = published[name.replace("q_bias", "v_bias")]
            name, value = (
                name.replace("q_bias", "qkv.bias"),
                torch.cat([value, torch.zeros_like(value), v_bias]),
            )
        weights[our_name(name)] = value
    return weights


@pytest.fixture
def objective_fixture(fixtures_dir):
    def load(name):
        arrays = np.load(fixtures_dir / f"{name}.npz")
        return arrays, json.loads(str(arrays["settings"]))

    return load


@pytest.fixture
def sizes_of():
    """Return the sizes of encoder and decoder in a fixture's settings."""

    def sizes(settings, **options):
        encoder = EncoderConfig(
            input_size=tuple(settings["input_size"]),
            patch_size=tuple(settings["patch_size"]),
            width=settings["embed"],
            depth=settings["depth"],
            heads=settings["heads"],
        )
        width, depth, heads = (settings[f"dec_{name}"] for name in ("embed", "depth", "heads"))
        return encoder, DecoderConfig(width=width, depth=depth, heads=heads, **options)

    return sizes


@pytest.fixture
def load_weights():
    def load(objective, arrays, prefix="w/"):
        missing, extra = objective.load_state_dict(published_weights(arrays, prefix), strict=False)
        assert not missing
        assert not extra

    return load


@pytest.fixture
def name_of():
    return our_name


@pytest.fixture
def weights_of():
    return published_weights
