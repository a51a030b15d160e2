"""The authors' files: every M2D inference fixture, and files that are no checkpoint."""

import argparse
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.build import with_options
from hear_m2d.checkpoint.card import notes_of
from hear_m2d.checkpoint.published import read_published
from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.config import Options

FOLDERS = {
    "a": "m2d_vit_base-80x208p16x16-240101-fxa_enconly",
    "a2": "m2d_vit_base-80x208p16x16-220930-fxa2",
    "b": "m2d_vit_base-80x200p16x4-230529-fxb_enconly",
    "c": "m2d_as_vit_base-80x304p16x16p32k-240413-fxc_enconly",
    "e": "m2d_s_vit_base-80x400p80x2-230201-fxe",
}
ATOL = 5e-5
NAME = "m2d_vit_base-80x64p16x16-240101-test"


def published(fixtures_dir: Path, folder: str) -> Path:
    (path,) = (fixtures_dir / FOLDERS[folder]).glob("*.pth")
    return path


@pytest.fixture(params=FOLDERS)
def fixture(request, fixtures_dir):
    """One published checkpoint with what its authors' code returned: (path, arrays)."""
    return published(fixtures_dir, request.param), np.load(
        fixtures_dir / FOLDERS[request.param] / "expected.npz"
    )


@pytest.fixture
def state(make_model):
    """An encoder-only state dict as the authors write it, of a narrow model."""
    tensors = {n: t.clone() for n, t in make_model(heads=1).encoder.state_dict().items()}
    return {**tensors, "norm_stats": torch.tensor([-6.5, 3.5])}


@pytest.fixture
def store(tmp_path):
    """Write an object as a .pth in a folder with a published name."""

    def write(content, folder=NAME):
        path = tmp_path / folder / "checkpoint-300.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path)
        return path

    return write


def groups(arrays) -> list[int]:
    return sorted(int(name[3:]) for name in arrays.files if name.startswith("wav"))


def test_columns_and_scene_equal_the_published_embeddings(fixture):
    path, arrays = fixture
    model = hear_m2d.load_model(path)
    for i in groups(arrays):
        audio = torch.from_numpy(arrays[f"wav{i}"])
        columns = model.columns(audio).numpy()
        assert columns.shape == arrays[f"frames{i}"].shape
        np.testing.assert_allclose(columns, arrays[f"frames{i}"], atol=ATOL, rtol=0)
        scene = hear_m2d.get_scene_embeddings(audio, model).numpy()
        np.testing.assert_allclose(scene, arrays[f"scene{i}"], atol=ATOL, rtol=0)
        flat = scene.reshape(len(scene), -1, model.config.encoder.width).mean(1)
        np.testing.assert_allclose(flat, arrays[f"flat_scene{i}"], atol=ATOL, rtol=0)


def test_layers_equal_the_published_block_outputs(fixture):
    path, arrays = fixture
    audio = torch.from_numpy(arrays["wav0"])
    expected = arrays["layers0"]
    for index in range(len(expected)):
        found = hear_m2d.load_model(path, layers=[index]).features(audio).numpy()
        np.testing.assert_allclose(found, expected[index], atol=ATOL, rtol=0)


def test_token_outputs_equal_the_published_ones(fixture):
    path, arrays = fixture
    tokens, mean = (hear_m2d.load_model(path, output=output) for output in ("tokens", "mean"))
    for i in groups(arrays):
        audio = torch.from_numpy(arrays[f"wav{i}"])
        for model, name in ((tokens, "flat"), (mean, "flat_frames")):
            if f"{name}{i}" in arrays.files:
                found = model.features(audio).numpy()
                np.testing.assert_allclose(found, arrays[f"{name}{i}"], atol=ATOL, rtol=0)
        for model in (tokens, mean):
            scene = hear_m2d.get_scene_embeddings(audio, model)
            assert scene.shape[1] == model.scene_embedding_size
            np.testing.assert_allclose(scene.numpy(), arrays[f"flat_scene{i}"], atol=ATOL, rtol=0)
            embeddings, _ = hear_m2d.get_timestamp_embeddings(audio, model)
            assert embeddings.shape[2] == model.timestamp_embedding_size


def test_log_mel_equals_the_published_one(fixtures_dir):
    arrays = np.load(fixtures_dir / FOLDERS["a2"] / "expected.npz")
    model = hear_m2d.load_model(published(fixtures_dir, "a2"))
    found = model.frontend(torch.from_numpy(arrays["wav0"])).numpy()
    np.testing.assert_allclose(found, arrays["lms0"][:, 0], atol=5e-4)


@pytest.mark.parametrize(("folder", "rate"), [("a", 16000), ("b", 16000), ("c", 32000), ("e", 16000)])
def test_sample_rate_comes_from_the_folders_name(fixtures_dir, folder, rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hear_m2d.load_model(published(fixtures_dir, folder)).sample_rate == rate


def test_sample_rate_comes_from_the_folders_name_for_a_bare_file_name_too(fixtures_dir, monkeypatch):
    path = published(fixtures_dir, "c")
    monkeypatch.chdir(path.parent)
    assert hear_m2d.load_model(path.name).sample_rate == 32000


def test_statistics_come_from_the_file_or_are_said_to_be_the_default(fixtures_dir):
    with_none = read_published(published(fixtures_dir, "a2"))
    assert (with_none.config.mean, with_none.config.std) == (-7.1, 4.2)
    assert any("stores no mean" in note for note in notes_of(with_none))
    stored = torch.load(published(fixtures_dir, "a"), weights_only=True)["norm_stats"]
    own = read_published(published(fixtures_dir, "a"))
    assert (own.config.mean, own.config.std) == tuple(stored.tolist())
    assert not any("stores no" in note for note in notes_of(own))


def test_a_mean_given_alone_leaves_the_note_that_std_is_a_default(fixtures_dir):
    read = read_published(published(fixtures_dir, "a2"))
    after_mean = with_options(read, Options(mean=-6.0))
    assert [note for note in notes_of(after_mean) if "stores no" in note] == [
        "the file stores no std: 4.2 taken; std= changes it"
    ]
    after_std = with_options(after_mean, Options(mean=-6.0, std=3.0))
    assert not any("stores no" in note for note in notes_of(after_std))


def test_nested_lists_in_the_arguments_do_not_hang_loading(store, state):
    """Each level once took 16 times as long, and a list that held itself ended in a RecursionError."""
    deep = "x"
    for _ in range(30):
        deep = [deep] * 16
    endless = ["a", 3]
    endless.append(endless)
    arguments = argparse.Namespace(csv_main=deep, data_path=endless, dataset=["b", ("c",), None, 2.5])
    training = read_published(store({"model": state, "args": arguments})).config.training
    assert "csv_main" not in training
    assert (training["data_path"], training["dataset"]) == (["a", 3], ["b", 2.5])


def test_what_pretraining_left_in_the_file_is_named(fixtures_dir):
    notes = " ".join(notes_of(read_published(published(fixtures_dir, "e"))))
    for family in ("decoder_blocks", "target_blocks", "mask_token", "offline_predictor"):
        assert family in notes


def test_license_of_published_weights_is_said(fixtures_dir):
    assert "non-commercial" in read_published(published(fixtures_dir, "a")).config.licence


def test_a_renamed_file_warns_about_its_rate_and_embeds_the_same(fixtures_dir, tmp_path, noise):
    path = published(fixtures_dir, "a")
    renamed = tmp_path / "weights.pth"
    renamed.write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match=r"sample rate: 16000 Hz taken"):
        model = hear_m2d.load_model(renamed)
    audio = noise(1, 40000)
    assert torch.equal(model.columns(audio), hear_m2d.load_model(path).columns(audio))


def test_a_rate_given_by_hand_silences_the_warning(fixtures_dir, tmp_path):
    renamed = tmp_path / "weights.pth"
    renamed.write_bytes(published(fixtures_dir, "c").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hear_m2d.load_model(renamed, sample_rate=32000).sample_rate == 32000


def test_a_rate_given_by_hand_that_the_file_contradicts_warns(fixtures_dir, checkpoint_path):
    for path, given, said in ((published(fixtures_dir, "c"), 16000, 32000), (checkpoint_path, 44100, 16000)):
        with pytest.warns(UserWarning, match=f"sample_rate={given} is given, but .* says {said} Hz"):
            assert hear_m2d.load_model(path, sample_rate=given).sample_rate == given
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hear_m2d.load_model(path, sample_rate=said)


@pytest.mark.parametrize("rate", [1, 100, 4000, 10**9])
def test_a_rate_given_by_hand_that_no_front_end_has_is_named(checkpoint_path, rate):
    with pytest.raises(ValueError, match=f"sample_rate={rate}; a model's rate is 16000 or 32000 as a rule"):
        hear_m2d.load_model(checkpoint_path, sample_rate=rate)


def test_a_name_that_contradicts_the_tensors_is_not_believed(fixtures_dir, tmp_path):
    folder = tmp_path / "m2d_vit_base-80x608p16x16p32k-x"
    folder.mkdir()
    path = folder / "checkpoint-300.pth"
    path.write_bytes(published(fixtures_dir, "a").read_bytes())
    checkpoint = read_published(path)
    assert checkpoint.config.encoder.input_size == (80, 208)
    assert checkpoint.config.frontend.sample_rate == 16000
    assert any("does not fit" in note for note in notes_of(checkpoint))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=1)}]
)
def test_bare_and_training_files_read_alike(store, state, wrap):
    checkpoint = read_published(store(wrap(state)))
    assert (checkpoint.config.mean, checkpoint.config.std) == (-6.5, 3.5)
    assert checkpoint.config.encoder.input_size == (80, 64)
    assert set(checkpoint.tensors) == set(state) - {"norm_stats"}


def test_missing_extra_and_misshapen_tensors_are_named(store, state):
    without = {n: t for n, t in state.items() if n != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.bias is missing"):
        read_published(store(without))
    with pytest.raises(ValueError, match=r"surprise\.weight is not part"):
        read_published(store({**state, "surprise.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"norm\.bias has shape \[65\], not \[64\]"):
        read_published(store({**state, "norm.bias": torch.zeros(65)}))
    with pytest.raises(ValueError, match=r"norm\.bias is torch\.float64"):
        read_published(store({**state, "norm.bias": torch.zeros(64, dtype=torch.float64)}))


@pytest.mark.parametrize(
    "damage",
    [
        {"patch_embed.proj.weight": torch.zeros(64, 1, 0, 16)},
        {"patch_embed.proj.weight": torch.zeros(64, 1, 16, 0)},
        {"patch_embed.proj.weight": torch.zeros(0, 1, 16, 16)},
        {"patch_embed.proj.weight": torch.zeros(64, 1, 160, 16)},
        {"patch_embed.proj.weight": torch.zeros(64)},
        {"pos_embed": torch.zeros(1, 0, 64)},
        {"pos_embed": 3},
        {"blocks.0.mlp.fc1.weight": torch.tensor(1.0)},
        {"blocks.x.mlp.fc1.weight": torch.zeros(256, 64)},
        {"norm_stats": torch.tensor([0.0, float("nan")])},
        {"norm_stats": torch.tensor([0.0, 0.0])},
        {"norm_stats": torch.zeros(3)},
        {"norm.bias": "text"},
    ],
)
def test_senseless_tensors_are_refused_in_a_sentence_that_names_the_file(store, state, damage):
    with pytest.raises(ValueError, match=r"checkpoint-300\.pth"):
        read_published(store({**state, **damage}))


class Malicious:
    """Pickles into a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_never_runs_and_is_named(tmp_path, state, layout):
    witness = tmp_path / "it_ran"
    content = {"model": state, "args": Malicious(f"touch {witness}")}
    path = tmp_path / "evil.pth"
    if layout == "plain pickle":
        path.write_bytes(pickle.dumps({"args": content["args"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth is not .*: it holds .*it was not run") as caught:
        hear_m2d.load_model(path)
    assert not witness.exists()
    assert "system" in str(caught.value)


class Harmless:
    """A type that no checkpoint holds."""


@pytest.mark.parametrize(
    "content", [[1, 2], 3, "text", {1: 2}, {"model": [1]}, {"a": torch.zeros(2)}, {}, {"model": {}}]
)
def test_a_pickle_that_is_no_checkpoint_is_refused_in_a_sentence(store, content):
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        hear_m2d.load_model(store(content))


def test_a_pickle_of_another_type_is_refused_by_name(tmp_path):
    path = tmp_path / "path.pth"
    torch.save({"where": Path("x")}, path)
    with pytest.raises(ValueError, match=r"(?i)path"):
        hear_m2d.load_model(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_in_a_sentence(fixtures_dir, tmp_path, share):
    data = published(fixtures_dir, "a").read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cut\.pth is not a readable checkpoint"):
        hear_m2d.load_model(path)


def test_a_zip_of_something_else_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"other\.pth holds no file that ends in \.safetensors"):
        read_weights(path)
