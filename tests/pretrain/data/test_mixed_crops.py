"""Noise in the log-mel domain: the published formula, and the same noise for the same (seed, epoch, clip)."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.pretrain.data.crops import Crops, MixedCrops, mix_log_mel, noise_crop
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sampling import draw


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three clips (0.25, 1 and 2 s) and three of noise (0.3, 1 and 3 s), prepared."""
    made = []
    for seed, lengths in enumerate([(4000, 16000, 32000), (4800, 16000, 48000)]):
        folder = tmp_path_factory.mktemp("sound")
        rng = np.random.default_rng(seed)
        for index, samples in enumerate(lengths):
            level = rng.uniform(0.01, 0.3)
            soundfile.write(folder / f"{index}.wav", level * rng.standard_normal(samples), 16000)
        prepare(folder, tmp := tmp_path_factory.mktemp("data") / "d")
        made.append(LogMelData(tmp))
    return made


def test_mixing_equals_the_published(fixtures_dir):
    arrays = np.load(fixtures_dir / "log_mixup.npz")
    noise, clean = torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"])
    names = [name for name in arrays.files if name.startswith("alpha_")]
    assert len(names) == 5
    for name in names:
        mixed = mix_log_mel(clean, noise, float(name.removeprefix("alpha_")))
        np.testing.assert_allclose(mixed, arrays[name], atol=2e-5, err_msg=name)


def test_an_item_is_the_mixture_of_the_crop_and_the_noise_less_their_means(folders):
    data, noise = folders
    mixed = MixedCrops(Crops(data, frames=60, seed=3), noise, ratio=0.3)
    heard = set()
    for key in [(epoch, clip) for epoch in range(8) for clip in range(3)]:
        item = mixed[key]
        torch.testing.assert_close(item["clean"], Crops(data, frames=60, seed=3)[key]["x"])
        clip, start = noise_crop(noise.lengths, 60, seed=3, key=key)
        heard.add(clip)
        repeated = np.tile(noise.logmel(clip).astype(np.float64), (1, 4))
        a = repeated[:, start : start + 60] - noise.mean
        b = item["clean"][0].numpy().astype(np.float64) * data.std
        expected = np.log(np.maximum(0.3 * np.exp(a) + 0.7 * np.exp(b), np.finfo(np.float32).eps)) / data.std
        np.testing.assert_allclose(item["x"][0], expected, atol=1e-5)
    assert heard == {0, 1, 2}
    assert noise.lengths.min() < 60  # one of them is repeated


def test_noise_follows_from_seed_epoch_and_clip(folders):
    data, noise = folders

    def mixture(seed, key):
        return MixedCrops(Crops(data, frames=60, seed=seed), noise, ratio=0.5)[key]["x"]

    assert torch.equal(mixture(3, (0, 2)), mixture(3, (0, 2)))
    assert not torch.equal(mixture(3, (0, 2)), mixture(3, (1, 2)))
    assert not torch.equal(mixture(3, (0, 2)), mixture(4, (0, 2)))


def test_every_noise_clip_and_every_start_is_drawn():
    lengths = np.array([5, 12, 10])
    drawn = Counter(
        noise_crop(lengths, 10, seed=0, key=(epoch, clip)) for epoch in range(60) for clip in range(9)
    )
    short = {(0, start) for start in range(5)}  # repeated: it may begin anywhere
    assert drawn.keys() == short | {(1, 0), (1, 1), (1, 2), (2, 0)}


def test_noise_does_not_follow_the_crop():
    """Clips of one length get the noise of another number, at another frame, than their own crop."""
    lengths = np.full(1000, 1000)
    places = [noise_crop(lengths, 1, seed=0, key=(0, clip)) for clip in range(200)]
    starts = [draw(1000, 0, 0, clip) for clip in range(200)]
    for part in (0, 1):
        assert sum(place[part] == start for place, start in zip(places, starts, strict=True)) < 5
    assert sum(clip == start for clip, start in places) < 5


def test_noise_of_another_front_end_is_refused(folders, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(32000) * 0.1, 32000)
    prepare(tmp_path / "a.wav", tmp_path / "noise", sample_rate=32000)
    with pytest.raises(ValueError, match=r"prepared at 32000 Hz, the data .* at 16000 Hz"):
        MixedCrops(Crops(folders[0]), LogMelData(tmp_path / "noise"), ratio=0.3)


def test_other_tensors_of_an_item_are_kept(folders):
    class Labeled(Crops):
        def __getitems__(self, keys):
            return {**super().__getitems__(keys), "target": torch.ones(len(keys), 1)}

    data, noise = folders
    item = MixedCrops(Labeled(data, frames=20), noise, ratio=0.3)[0, 1]
    assert item["target"] == 1
    assert item.keys() == {"x", "clean", "target"}
