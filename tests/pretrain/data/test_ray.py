"""`hear-m2d prepare --ray`: the same folder from a cluster as from one process."""

import numpy as np
import pytest
import soundfile

from hear_m2d.pretrain.data import prepare as module
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.utils.errors import WorkFailedError

pytestmark = pytest.mark.slow


@pytest.fixture
def audio_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ITEMS", (3, 3))
    folder = tmp_path / "audio"
    folder.mkdir()
    for index in range(10):
        wave = 0.1 * np.random.default_rng(index).standard_normal(8000 + 1000 * index)
        soundfile.write(folder / f"{index}.wav", wave, 16000)
    (folder / "x.wav").write_bytes((folder / "3.wav").read_bytes())
    (folder / "y.wav").write_bytes(b"no sound")
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_a_cluster_makes_the_same_folder_byte_for_byte(cluster, audio_dir, tmp_path, monkeypatch):
    one = prepare(audio_dir, tmp_path / "one", workers=1)
    monkeypatch.chdir(tmp_path)
    many = prepare("audio", "many", ray="auto")  # relative paths: the workers stand somewhere else
    assert (many.clips, many.mean, many.skipped) == (one.clips, one.mean, {"corrupt": 1})
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_cluster_continues_a_started_set(cluster, audio_dir, tmp_path):
    prepare(audio_dir, tmp_path / "one")
    module.prepare_shard(audio_dir, tmp_path / "many", shard=(2, 2))
    prepare(audio_dir, tmp_path / "many", ray="auto")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_an_error_on_the_cluster_is_one_sentence(cluster, audio_dir, tmp_path):
    out = tmp_path / "out"
    task = module.list_work(audio_dir, out, sample_rate=16000, max_clip_s=30.0)
    task.begin()
    (out / "shard-00002.arrow").mkdir()  # where a file is to be written
    message = r"a shard could not be made on the cluster: .*shard-00002"
    with pytest.raises(WorkFailedError, match=message) as caught:
        prepare(audio_dir, out, ray="auto")
    assert "\n" not in str(caught.value)
