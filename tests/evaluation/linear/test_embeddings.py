"""Embeddings of a set: those of the HEAR function, kept by weights and files, remade where either changed."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.checkpoint.build import weights_digest
from hear_m2d.evaluation.linear.datasets import read_labeled
from hear_m2d.evaluation.linear.embeddings import (
    Embedder,
    cache_key,
    embed_task,
    fit_length,
    module_embedder,
    part_path,
)
from hear_m2d.utils.errors import InputError


@pytest.fixture
def labeled(tiny_tasks, tmp_path):
    return read_labeled(tiny_tasks.scene_multilabel(tmp_path / "tasks"), 16000)  # clips of many lengths


@pytest.fixture
def model(our_checkpoint):
    return hear_m2d.load_model(our_checkpoint)


def quietly_replace(path):
    """Put other sound of the same size and date in a file's place."""
    before = path.stat()
    sound, rate = soundfile.read(path)
    soundfile.write(path, sound[::-1], rate, subtype="PCM_16")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_they_are_the_scene_embeddings_in_the_sets_order(labeled, model):
    found = embed_task(model, labeled)
    assert found.shape == (len(labeled.clips), model.scene_embedding_size)
    for row, clip in list(enumerate(labeled.clips))[::9]:
        audio = torch.from_numpy(read_audio(clip.path, 16000))[None]
        alone = hear_m2d.get_scene_embeddings(audio, model)[0]
        np.testing.assert_allclose(found[row], alone, atol=1e-5)


def test_every_clip_is_counted(labeled, model):
    ticks = []
    embed_task(model, labeled, tick=ticks.append)
    assert sum(ticks) == len(labeled.clips)


def test_kept_embeddings_are_read_and_nothing_is_embedded(labeled, model, tmp_path):
    first = embed_task(model, labeled, cache=tmp_path / "cache")
    quietly_replace(labeled.clips[0].path)
    ticks = []
    again = embed_task(model, labeled, cache=tmp_path / "cache", tick=ticks.append)
    assert np.array_equal(first, again)
    assert not ticks
    assert not np.array_equal(embed_task(model, labeled), again)  # the file is another one


def test_a_changed_file_is_embedded_again(labeled, model, tmp_path):
    first = embed_task(model, labeled, cache=tmp_path / "cache")
    path = labeled.clips[0].path
    quietly_replace(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    again = embed_task(model, labeled, cache=tmp_path / "cache")
    assert not np.array_equal(first[0], again[0])
    assert np.array_equal(first[1:], again[1:])


def test_the_key_follows_weights_statistics_and_options(labeled, model, our_checkpoint):
    key = cache_key(model, labeled)
    assert cache_key(hear_m2d.load_model(our_checkpoint), labeled) == key
    for options in ({"mean": -5.0}, {"output": "mean"}, {"dtype": "bfloat16"}):
        assert cache_key(hear_m2d.load_model(our_checkpoint, **options), labeled) != key
    before = weights_digest(model)
    with torch.no_grad():
        model.encoder.norm.bias[0] += 1e-6
    assert weights_digest(model) != before


def test_a_damaged_cache_is_made_again_with_a_warning(labeled, model, tmp_path, caplog):
    first = embed_task(model, labeled, cache=tmp_path)
    path = part_path(tmp_path / cache_key(model, labeled), 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert np.array_equal(embed_task(model, labeled, cache=tmp_path), first)
    assert "computed again" in caplog.text
    caplog.clear()
    assert np.array_equal(embed_task(model, labeled, cache=tmp_path), first)
    assert not caplog.text


def test_a_file_that_does_not_decode_is_named(labeled, model):
    labeled.clips[3].path.write_bytes(b"RIFF no more than that")
    with pytest.raises(ValueError, match=labeled.clips[3].name):
        embed_task(model, labeled)


def test_embedding_that_was_interrupted_continues_with_the_first_part_that_is_missing(
    labeled, model, tmp_path, monkeypatch
):
    import hear_m2d.evaluation.linear.embeddings as module

    monkeypatch.setattr(module, "PART_CLIPS", 20)
    whole = embed_task(model, labeled)
    ticks = []

    def stop_after_two_parts(count):
        ticks.append(count)
        if sum(ticks) > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_task(model, labeled, cache=tmp_path, tick=stop_after_two_parts)
    ticks = []
    np.testing.assert_array_equal(embed_task(model, labeled, cache=tmp_path, tick=ticks.append), whole)
    assert sum(ticks) == len(labeled.clips) - 40


def test_a_unit_length_cuts_and_fills(labeled):
    ramp = torch.arange(10.0)
    assert fit_length(ramp, 4, 0).tolist() == [0, 1, 2, 3]
    assert fit_length(ramp, 4, 0.999).tolist() == [6, 7, 8, 9]
    assert fit_length(ramp, 12, 0.5).tolist() == [*range(10), 0, 0]
    whole = Embedder(16000, 1, lambda clips: torch.stack([clip.abs().sum()[None] for clip in clips]), str)
    lengths = Embedder(16000, 1, lambda clips: torch.tensor([[float(len(clip))] for clip in clips]), str)
    unit = replace(labeled, unit_s=0.5)
    assert set(embed_task(lengths, unit)[:, 0]) == {8000}
    # Training clips are cut at a random start, which stays the same; test clips at their beginning.
    cut = embed_task(whole, unit)[:, 0]
    assert np.array_equal(cut, embed_task(whole, unit)[:, 0])
    for index, clip in enumerate(unit.clips):
        audio = read_audio(clip.path, 16000)
        if clip.split == "test":
            np.testing.assert_allclose(cut[index], np.abs(audio[:8000]).sum(), rtol=1e-5)


def test_any_hear_module_embeds(labeled, tmp_path):
    embedder = module_embedder("tiny_hear_module", None, options={}, device=torch.device("cpu"))
    embeddings = embed_task(embedder, labeled, cache=tmp_path)
    assert embeddings.shape == (len(labeled.clips), 64)
    import tiny_hear_module

    audio = torch.from_numpy(read_audio(labeled.clips[0].path, 16000))[None]
    model = tiny_hear_module.load_model()
    alone = tiny_hear_module.get_scene_embeddings(audio, model)[0]
    np.testing.assert_allclose(embeddings[0], alone, atol=1e-5)


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "module_of_mine.py").write_text("from tiny_hear_module import *\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])  # the working directory is left in it
    embedder = module_embedder("module_of_mine", None, options={}, device=torch.device("cpu"))
    assert embedder.sample_rate == 16000


def test_a_model_may_be_a_name_that_its_module_resolves(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "module_with_names.py").write_text(
        "import tiny_hear_module\n"
        "from tiny_hear_module import *\n"
        "def resolve_model(name):\n"
        "    return {'someone/model': 'weights.bin'}[name]\n"
        "def load_model(path):\n"
        "    assert path == 'weights.bin'\n"
        "    return tiny_hear_module.load_model()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    name, device = Path("someone/model"), torch.device("cpu")
    assert module_embedder("module_with_names", name, options={}, device=device).sample_rate == 16000
    with pytest.raises(InputError, match="there is no checkpoint at someone/model"):
        module_embedder("tiny_hear_module", name, options={}, device=device)


def test_a_module_that_lacks_a_part_of_the_api_is_refused_by_name():
    with pytest.raises(ValueError, match="lacks parts of the HEAR API: the function load_model"):
        module_embedder("json", None, options={}, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="cannot be imported"):
        module_embedder("no_such_module_here", None, options={}, device=torch.device("cpu"))
