"""What the tests of the core share: narrow random models, noise, and checkpoints of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hear_m2d.checkpoint import save_checkpoint
from hear_m2d.config import ModelConfig, Options
from hear_m2d.encoder import EncoderConfig
from hear_m2d.frontend import FrontendConfig
from hear_m2d.model import HearModel

MakeModel = Callable[..., HearModel]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A narrow model with every weight random: ``make_model(patch=…, rate=…, frames=…, options={…})``."""

    def make(
        patch=(16, 16), rate=16000, frames=64, width=64, depth=2, heads=2, seed=0, options=None,
        class_token=True, **config,
    ):  # fmt: skip
        encoder = EncoderConfig(
            input_size=(80, frames), patch_size=patch, width=width, depth=depth, heads=heads,
            class_token=class_token,
        )  # fmt: skip
        whole = ModelConfig(encoder=encoder, frontend=FrontendConfig.for_rate(rate), **config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = HearModel(whole, Options.parse(options or {}))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:  # norms and biases, too regular as initialised
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., torch.Tensor]:
    """White noise, (batch, samples): ``noise(batch, samples, scale=…, seed=…)``."""

    def make(batch, samples, scale=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return scale * (2 * torch.rand(batch, samples, generator=generator) - 1)

    return make


@pytest.fixture
def checkpoint_path(make_model: MakeModel, tmp_path: Path) -> Path:
    """A checkpoint of a narrow 16x16 model, freshly written."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, make_model(training={"recipe": "tiny_m2d", "steps": 3}, licence="Apache-2.0"))
    return path
