"""Config and options: what is kept, what is overridden, which names are near."""

import pytest

from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.utils.errors import unknown_name


def test_options_override_what_the_file_says_and_nothing_else():
    config = ModelConfig(labels=("a",), head_width=768, licence="MIT")
    assert Options().override(config) == config
    found = Options(sample_rate=32000, input_frames=623, mean=-1, std=2).override(config)
    assert (found.mean, found.std) == (-1.0, 2.0)
    assert found.encoder.input_size == (80, 623)
    frontend = found.frontend
    assert (frontend.sample_rate, frontend.n_fft, frontend.hop_length, frontend.f_max) == (
        32000,
        800,
        320,
        16000,
    )
    assert (found.labels, found.head_width, found.licence) == (config.labels, 768, "MIT")


def test_a_rate_that_the_file_already_has_keeps_its_front_end():
    config = ModelConfig(frontend=FrontendConfig(f_min=60.0))
    assert Options(sample_rate=16000).override(config).frontend.f_min == 60.0


def test_layers_may_be_a_list():
    assert Options.parse({"layers": [0, -1]}).layers == (0, -1)


def test_the_nearest_names_come_with_all_known_ones():
    sentence = unknown_name("recipe", "m2d_tinny", ["m2d_tiny", "msm_mae", "m2d_base"])
    assert "'m2d_tinny'" in sentence
    assert "Did you mean m2d_tiny" in sentence
    assert "msm_mae" in sentence
    assert "Did you mean" not in unknown_name("recipe", "zzz", ["m2d_tiny"])


@pytest.mark.parametrize("field", ["mels", "head", "widths"])
def test_an_unknown_config_field_is_refused(field):
    with pytest.raises(ValueError, match=f"unknown ModelConfig field '{field}'"):
        ModelConfig.from_json({**ModelConfig().to_json(), field: 1})


@pytest.mark.parametrize(("n_mels", "n_fft"), [(202, 400), (8000, 100000)])
def test_a_front_end_with_too_many_mel_bins_is_refused_before_its_filters_are_made(n_mels, n_fft):
    with pytest.raises(ValueError, match="too many"):
        FrontendConfig(sample_rate=192000, n_fft=n_fft, hop_length=100, n_mels=n_mels, f_max=8000)
