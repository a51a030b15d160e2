"""Log-mel statistics: sizes, centers, and scores above chance where only level and timbre count."""

import pytest
import torch

from hear_m2d.evaluation.baselines import log_mel


@pytest.fixture(scope="module")
def model():
    return log_mel.load_model()


def test_a_scene_is_the_mean_and_deviation_of_every_mel_bin_over_time(model):
    audio = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    spectrogram = model.frontend(audio).double()
    scene = log_mel.get_scene_embeddings(audio, model)
    expected = torch.cat([spectrogram.mean(2), spectrogram.std(2, correction=0)], dim=1).float()
    assert scene.shape == (2, model.scene_embedding_size)
    torch.testing.assert_close(scene, expected, rtol=1e-4, atol=1e-4)


def test_a_click_is_loudest_at_the_timestamp_nearest_to_it(model):
    audio = torch.zeros(1, 32000)
    audio[0, 12345] = 1.0
    embeddings, times = log_mel.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (1, times.shape[1], model.timestamp_embedding_size)
    at = float(times[0, embeddings[0].mean(1).argmax()])
    assert abs(at - 12345 / 16) <= 20


def test_timestamps_are_40_ms_apart_and_none_lies_past_the_end(model):
    _, times = log_mel.get_timestamp_embeddings(torch.zeros(1, 16000), model)
    assert torch.equal(times[0].diff(), torch.full((times.shape[1] - 1,), 40.0))
    assert times[0, 0] == 15.0
    assert times[0, -1] <= 1000


def test_the_shortest_clip_has_one_timestamp(model):
    embeddings, times = log_mel.get_timestamp_embeddings(torch.zeros(1, 100), model)
    assert embeddings.shape[:2] == times.shape == (1, 1)
