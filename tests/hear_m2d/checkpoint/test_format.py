"""One .safetensors file: what is saved comes back bit for bit, and any other file is refused by name."""

import hashlib
import json
import re

import pytest
import safetensors
import safetensors.torch
import torch

import hear_m2d
from hear_m2d.checkpoint.build import build_model
from hear_m2d.checkpoint.card import describe
from hear_m2d.checkpoint.format import read_checkpoint, read_tensors, save_checkpoint, write_tensors
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.config import ModelConfig


@pytest.fixture
def rewrite(checkpoint_path):
    """Write the checkpoint again with changed tensors or facts, its SHA-256 made right."""

    def change(tensors=None, drop=(), **facts):
        old, config = read_tensors(checkpoint_path, "hear_m2d")
        new = {name: tensor for name, tensor in {**old, **(tensors or {})}.items() if name not in drop}
        write_tensors(checkpoint_path, new, {"hear_m2d": {**config, **facts}})
        return checkpoint_path

    return change


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patch": (80, 2), "rate": 32000, "frames": 51, "class_token": False},
        {"labels": ("dog", "cat", "Vögel"), "head_width": 64, "kind": "msm_mae", "code_base": "msm_mae"},
        {"labels": ("a", "b"), "head_width": 320, "mean": -3.25, "std": 0.1},
    ],
)
def test_a_saved_model_comes_back_bit_for_bit(make_model, tmp_path, noise, settings):
    model = make_model(**settings)
    path = tmp_path / "deep" / "er" / "model.safetensors"
    save_checkpoint(path, model)
    again = hear_m2d.load_model(path)
    assert again.config == model.config
    assert list(again.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert tensor.dtype == again.state_dict()[name].dtype
    audio = noise(2, 20000)
    assert torch.equal(model.columns(audio), again.columns(audio))
    if model.labels:
        assert torch.equal(model.classify(audio), again.classify(audio))
    twice = tmp_path / "twice.safetensors"
    save_checkpoint(twice, again)
    assert twice.read_bytes() == path.read_bytes()


def test_metadata_says_config_and_checksum_in_json(checkpoint_path):
    with safetensors.safe_open(checkpoint_path, framework="pt") as file:
        facts = json.loads(file.metadata()["hear_m2d"])
    data = checkpoint_path.read_bytes()
    section = data[8 + int.from_bytes(data[:8], "little") :]
    assert facts["sha256"] == hashlib.sha256(section).hexdigest()
    assert facts["format"] == 1
    assert {"kind", "encoder", "frontend", "mean", "std", "labels", "licence", "training"} <= set(facts)


def test_a_file_serialized_once_has_the_bytes_of_one_serialized_twice(tmp_path, monkeypatch):
    """The first way of format 1: serialize for the digest, then again with the digest in the metadata."""
    tensors = {
        "z": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "ä": torch.tensor(3),
        "half": torch.arange(5, dtype=torch.float16),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "b": torch.randn(1000, generator=torch.Generator().manual_seed(0)).double(),
    }
    facts = {"note": 'Vögel "\\', "nested": {"sha256": "0" * 64}}
    first = safetensors.torch.save(tensors)
    digest = hashlib.sha256(first[8 + int.from_bytes(first[:8], "little") :]).hexdigest()
    text = json.dumps({**facts, "sha256": digest})
    expected = safetensors.torch.save(tensors, metadata={"hear_m2d": text})
    calls = []
    save = safetensors.torch.save
    monkeypatch.setattr(safetensors.torch, "save", lambda *a, **k: calls.append(a) or save(*a, **k))
    write_tensors(tmp_path / "x.safetensors", tensors, {"hear_m2d": facts})
    assert (tmp_path / "x.safetensors").read_bytes() == expected
    assert len(calls) == 1


def test_a_loaded_model_trains(checkpoint_path, noise):
    model = hear_m2d.load_model(checkpoint_path)
    assert all(p.requires_grad for p in model.parameters())
    model(noise(1, 8000)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_missing_tensors_are_named(rewrite):
    with pytest.raises(ValueError, match=r"model\.safetensors: .*blocks\.0\.norm1\.bias is missing"):
        read_checkpoint(rewrite(drop=["blocks.0.norm1.bias"]))


def test_extra_tensors_are_named(rewrite):
    with pytest.raises(ValueError, match=r"head\.linear\.weight is not part of the model"):
        read_checkpoint(rewrite({"head.linear.weight": torch.zeros(2, 64)}))


def test_misshapen_tensors_are_named_with_both_shapes(rewrite):
    with pytest.raises(ValueError, match=r"norm\.weight has shape \[3\], not \[64\]"):
        read_checkpoint(rewrite({"norm.weight": torch.zeros(3)}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_tensors_of_another_dtype_are_named(rewrite, dtype):
    with pytest.raises(ValueError, match=rf"norm\.weight is {re.escape(str(dtype))}, not torch\.float32"):
        read_checkpoint(rewrite({"norm.weight": torch.zeros(64, dtype=dtype)}))


def test_many_faults_are_counted_not_listed(rewrite):
    path = rewrite(
        drop=[f"blocks.1.{n}.{k}" for n in ("norm1", "norm2", "attn.qkv") for k in ("weight", "bias")]
    )
    with pytest.raises(ValueError, match=r"and 1 more"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_one_flipped_bit_anywhere_in_the_tensors_is_noticed(checkpoint_path, place):
    data = bytearray(checkpoint_path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + int(place * (len(data) - 1 - start))] ^= 1
    checkpoint_path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: its tensors do not match the SHA-256"):
        hear_m2d.load_model(checkpoint_path)


def test_a_large_file_is_verified_on_request(checkpoint_path, monkeypatch):
    monkeypatch.setattr("hear_m2d.checkpoint.format.VERIFY_BELOW", 1000)
    data = bytearray(checkpoint_path.read_bytes())
    data[-1] ^= 1
    checkpoint_path.write_bytes(data)
    hear_m2d.load_model(checkpoint_path)
    with pytest.raises(ValueError, match="do not match the SHA-256"):
        read_weights(checkpoint_path, verify=True)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(checkpoint_path, length):
    data = checkpoint_path.read_bytes()
    checkpoint_path.write_bytes(length.to_bytes(8, "little") + data[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        hear_m2d.load_model(checkpoint_path)


@pytest.mark.parametrize("offsets", [[0, 2**62], [8, 4], [-1, 256], [0, 257]])
def test_a_header_with_wrong_offsets_is_refused(checkpoint_path, offsets):
    data = checkpoint_path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["norm.bias"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    checkpoint_path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        hear_m2d.load_model(checkpoint_path)


@pytest.mark.parametrize("keep", [1, 8, 9, 100, -1, -1000])
def test_a_truncated_file_is_refused(checkpoint_path, keep):
    checkpoint_path.write_bytes(checkpoint_path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        hear_m2d.load_model(checkpoint_path)


def test_bytes_after_the_end_are_refused(checkpoint_path):
    checkpoint_path.write_bytes(checkpoint_path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"model\.safetensors is"):
        hear_m2d.load_model(checkpoint_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"objective": "{}"}])
def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"was not written by hear-m2d"):
        hear_m2d.load_model(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", '{"sha256": 3}', "[" * 100_000])
def test_metadata_that_is_no_config_is_refused(checkpoint_path, text):
    tensors, _ = read_tensors(checkpoint_path, "hear_m2d")
    safetensors.torch.save_file(tensors, checkpoint_path, metadata={"hear_m2d": text})
    with pytest.raises(ValueError, match=r"model\.safetensors.* damaged"):
        hear_m2d.load_model(checkpoint_path)


def config_facts(path, part="encoder", **changes):
    return {part: {**read_tensors(path, "hear_m2d")[1][part], **changes}}


def test_an_unknown_field_is_refused_with_the_nearest_name(rewrite, checkpoint_path):
    with pytest.raises(ValueError, match=r"field 'licens'\. Did you mean licence"):
        read_checkpoint(rewrite(licens="MIT"))


def test_an_unknown_field_of_the_encoder_is_refused_with_the_nearest_name(rewrite, checkpoint_path):
    with pytest.raises(ValueError, match=r"field 'widht'\. Did you mean width"):
        read_checkpoint(rewrite(**config_facts(checkpoint_path, widht=64)))


def test_another_format_is_refused(rewrite):
    with pytest.raises(ValueError, match=r"format 2; this version reads format 1"):
        read_checkpoint(rewrite(format=2))


@pytest.mark.parametrize(
    "facts",
    [
        {"mean": "x"}, {"mean": None}, {"std": 0}, {"std": -1.0}, {"std": float("nan")}, {"mean": 10**400},
        {"mean": True}, {"mean": 2**70}, {"std": 1e308}, {"mean": -1e308},
        {"projector": {"kind": "semantic", "width": 64, "hidden": 64, "depth": 2**70}},
        {"projector": {"kind": "mean", "width": 64, "hidden": 2**70, "depth": 0}},
        {"labels": 3}, {"labels": "dog"}, {"labels": [1, 2]}, {"head_width": 64},
        {"labels": ["a"], "head_width": 5},
        {"encoder": 3}, {"encoder": {}}, {"encoder": None}, {"frontend": None}, {"frontend": [3]},
        {"training": "x"}, {"training": 3}, {"kind": 3}, {"licence": ["x"]}, {"code_base": "elsewhere"},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(rewrite, facts):
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        read_checkpoint(rewrite(**facts))


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 10**9}, {"width": 4 * 10**12, "heads": 4}, {"input_size": [80, 10**12]}, {"depth": 2.0},
        {"depth": "2"},
        {"heads": 0}, {"heads": 10**30}, {"mlp_ratio": float("inf")}, {"mlp_ratio": float("nan")},
        {"mlp_ratio": "4"},
        {"mlp_ratio": 1e300}, {"mlp_ratio": -4.0}, {"mlp_ratio": 0}, {"input_size": [80]},
        {"input_size": "80x64"},
        {"patch_size": [16.5, 16]}, {"patch_size": [16, 0]}, {"class_token": "yes"}, {"class_token": False},
        {"input_size": [160, 64]}, {"depth": 1}, {"depth": 3}, {"width": True},
    ],
)  # fmt: skip
def test_wrong_sizes_are_refused_at_once(rewrite, checkpoint_path, changes):
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        read_checkpoint(rewrite(**config_facts(checkpoint_path, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_mels": 81}, {"sample_rate": 0}, {"sample_rate": "16000"}, {"n_fft": 400.5}, {"n_fft": 10**12},
        {"hop_length": 10**12}, {"sample_rate": 10**15, "n_fft": 10**14, "f_max": 1e14}, {"f_max": "x"},
        {"f_min": None}, {"f_max": float("nan")},
    ],
)  # fmt: skip
def test_a_wrong_front_end_is_refused_at_once(rewrite, checkpoint_path, changes):
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        read_checkpoint(rewrite(**config_facts(checkpoint_path, "frontend", **changes)))


@pytest.mark.parametrize(("part", "field"), [("frontend", "hop_length"), ("encoder", "patch_size")])
def test_a_number_that_the_config_lacks_is_not_quietly_the_usual_one(rewrite, checkpoint_path, part, field):
    facts = config_facts(checkpoint_path, part)
    del facts[part][field]
    with pytest.raises(ValueError, match=rf"model\.safetensors: .* lacks {field}"):
        read_checkpoint(rewrite(**facts))


@pytest.mark.parametrize("field", ["encoder", "frontend", "mean", "std"])
def test_a_config_without_a_part_of_it_is_refused(field):
    facts = ModelConfig().to_json()
    del facts[field]
    with pytest.raises(ValueError, match=f"lacks {field}"):
        ModelConfig.from_json(facts)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(checkpoint_path, make_model, monkeypatch):
    before = checkpoint_path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hear_m2d.utils.files.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(checkpoint_path, make_model(seed=1))
    assert checkpoint_path.read_bytes() == before
    assert list(checkpoint_path.parent.iterdir()) == [checkpoint_path]


def test_saving_a_bfloat16_model_stores_float32(make_model, tmp_path):
    model = make_model()
    model.encoder.to(torch.bfloat16)
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model)
    again = hear_m2d.load_model(path)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert torch.equal(again.encoder.norm.weight, model.encoder.norm.weight.float())


def test_loading_twice_shares_no_weights(checkpoint_path):
    one, two = hear_m2d.load_model(checkpoint_path), hear_m2d.load_model(checkpoint_path)
    with torch.no_grad():
        one.encoder.norm.weight.zero_()
    assert two.encoder.norm.weight.any()


def test_two_models_of_one_checkpoint_share_no_weights(checkpoint_path):
    checkpoint = read_checkpoint(checkpoint_path)
    one, two = build_model(checkpoint), build_model(checkpoint)
    with torch.no_grad():
        one.encoder.norm.weight.zero_()
    assert two.encoder.norm.weight.any()


def test_describe_says_the_true_sizes(checkpoint_path):
    facts = describe(read_checkpoint(checkpoint_path))
    model = hear_m2d.load_model(checkpoint_path)
    assert facts["scene_embedding_size"] == model.scene_embedding_size == 320
    assert facts["timestamp_embedding_size"] == model.timestamp_embedding_size
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["input"].startswith("80x64")
    assert facts["patch"] == "16x16"
    assert (facts["column_ms"], facts["timestamp_step_ms"]) == (160.0, 40.0)
    assert facts["training"] == {"recipe": "tiny_m2d", "steps": 3}
    assert facts["licence"] == "Apache-2.0"


def test_config_survives_json():
    config = ModelConfig(labels=("a", "b"), head_width=768, training={"steps": 3})
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
