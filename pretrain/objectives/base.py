"""The interface between training loop and objectives, and code shared by M2D and MSM-MAE."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hear_m2d.model.encoder import SpectrogramEncoder
from hear_m2d.pretrain.objectives.decoder import Decoder


class ObjectiveOutput(NamedTuple):
    """One forward pass of an objective.

    Attributes:
        loss: A scalar with gradients.
        predicted: Predictions at the masked patches, (batch, masked, features).
        target: Their targets before standardization, (batch, masked, features).
        latent: Encoder output, (batch, [1 +] visible, width).
        meters: Scalars to log.
    """

    loss: Tensor
    predicted: Tensor
    target: Tensor
    latent: Tensor
    meters: dict[str, Tensor]


class Objective(nn.Module):
    """An encoder and its objective: ``objective(x, noise, target)`` returns an :class:`ObjectiveOutput`."""

    encoder: SpectrogramEncoder
    decoder: Decoder
    needs_whole_batch = False  # whether the loss of a clip depends on the other clips of its step

    @property
    def offline_shape(self) -> tuple[int, ...] | None:
        """Shape of one clip's offline target; None where the objective has none."""
        return None

    def offline_target(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Return the offline target of a batch; None if the objective has none."""
        return None

    def momentum_update(self, decay: float) -> None:
        """Update a momentum network after an optimizer step; does nothing if there is none."""

    def beside_encoder(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint of the encoder leaves out."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("encoder.")}


def standardize_tokens(x: Tensor) -> Tensor:
    """Standardize over the last axis, unbiased variance plus 1e-6, as published (``norm_pix_loss``)."""
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)


def standardize_features(x: Tensor) -> Tensor:
    """Standardize each feature over the clips and tokens of all processes; variance plus 1e-6.

    Args:
        x: (batch, tokens, features), as many of each on every process, without a gradient.
    """
    mean = _over_processes(x.mean((0, 1)))
    variance = _over_processes((x - mean).square().mean((0, 1)))
    return (x - mean) / torch.sqrt(variance + 1e-6)


def _over_processes(mean: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


def at_least_float32(x: Tensor) -> Tensor:
    """Return float64 as it is, and anything else as float32."""
    return x if x.dtype == torch.float64 else x.float()
