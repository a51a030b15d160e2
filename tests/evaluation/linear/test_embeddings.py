"""Embeddings of a set: those of the HEAR function, kept by weights and files, remade where either changed."""

import os

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.evaluation.linear.datasets import read_labelled
from hear_m2d.evaluation.linear.embeddings import cache_key, embed_task, weights_digest


@pytest.fixture
def labelled(tiny_tasks, tmp_path):
    return read_labelled(tiny_tasks.scene_multilabel(tmp_path / "tasks"), 16000)  # clips of many lengths


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


def test_they_are_the_scene_embeddings_in_the_sets_order(labelled, model):
    found = embed_task(model, labelled)
    assert found.shape == (len(labelled.clips), model.scene_embedding_size)
    for row, clip in list(enumerate(labelled.clips))[::9]:
        audio = torch.from_numpy(read_audio(clip.path, 16000))[None]
        alone = hear_m2d.get_scene_embeddings(audio, model)[0]
        np.testing.assert_allclose(found[row], alone, atol=1e-5)


def test_every_clip_is_counted(labelled, model):
    ticks = []
    embed_task(model, labelled, tick=ticks.append)
    assert sum(ticks) == len(labelled.clips)


def test_kept_embeddings_are_read_and_nothing_is_embedded(labelled, model, tmp_path):
    first = embed_task(model, labelled, cache=tmp_path / "cache")
    quietly_replace(labelled.clips[0].path)
    ticks = []
    again = embed_task(model, labelled, cache=tmp_path / "cache", tick=ticks.append)
    assert np.array_equal(first, again)
    assert not ticks
    assert not np.array_equal(embed_task(model, labelled), again)  # the file is another one


def test_a_changed_file_is_embedded_again(labelled, model, tmp_path):
    first = embed_task(model, labelled, cache=tmp_path / "cache")
    path = labelled.clips[0].path
    quietly_replace(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    again = embed_task(model, labelled, cache=tmp_path / "cache")
    assert not np.array_equal(first[0], again[0])
    assert np.array_equal(first[1:], again[1:])


def test_the_key_follows_weights_statistics_and_options(labelled, model, our_checkpoint):
    key = cache_key(model, labelled)
    assert cache_key(hear_m2d.load_model(our_checkpoint), labelled) == key
    for options in ({"mean": -5.0}, {"output": "mean"}, {"dtype": "bfloat16"}):
        assert cache_key(hear_m2d.load_model(our_checkpoint, **options), labelled) != key
    before = weights_digest(model)
    with torch.no_grad():
        model.encoder.norm.bias[0] += 1e-6
    assert weights_digest(model) != before


def test_a_damaged_cache_is_made_again_with_a_warning(labelled, model, tmp_path, caplog):
    first = embed_task(model, labelled, cache=tmp_path)
    path = tmp_path / f"{cache_key(model, labelled)}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert np.array_equal(embed_task(model, labelled, cache=tmp_path), first)
    assert "made again" in caplog.text
    caplog.clear()
    assert np.array_equal(embed_task(model, labelled, cache=tmp_path), first)
    assert not caplog.text


def test_a_file_that_does_not_decode_is_named(labelled, model):
    labelled.clips[3].path.write_bytes(b"RIFF no more than that")
    with pytest.raises(ValueError, match=labelled.clips[3].name):
        embed_task(model, labelled)
