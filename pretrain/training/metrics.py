"""Metrics of training: they show whether a network collapses, and how well the machine is used.

The meters of the encoder's output are computed on the device, and only in steps that are logged.
"""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor, nn

from hear_m2d.pretrain.objectives.base import at_least_float32
from hear_m2d.utils.flops import matrix_rate

MOST_CLIPS = 1024  # maximum number of rows for RankMe
EPSILON = 1e-7  # epsilon of RankMe
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
# Sizes of matrices: large enough to reach a device's rate, small enough to be multiplied in a moment.
RATE_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}


@torch.no_grad()
def token_meters(target: Tensor) -> dict[str, Tensor]:
    """Return metrics that show a collapse of the target (std → 0, cosine → 1).

    Args:
        target: (batch, masked, width).

    Returns:
        ``target_std``: standard deviation over tokens, mean over features. ``target_cosine``: mean cosine
        between two tokens of the batch.
    """
    tokens = at_least_float32(target).flatten(0, 1)
    mean = nn.functional.normalize(tokens, dim=-1).mean(0)
    n = len(tokens)
    cosine = (mean.square().sum() * n - 1) / max(n - 1, 1)  # without a token's cosine to itself
    return {"target_std": tokens.std(0).mean(), "target_cosine": cosine}


@torch.no_grad()
def latent_meters(latent: Tensor, *, class_token: bool) -> dict[str, Tensor]:
    """Return ``latent_std`` and ``latent_cosine``: the :func:`token_meters` of the encoder's output.

    Args:
        latent: Encoder output, (clips, [1 +] visible, width).
        class_token: Whether the first token is a class token, which is then left out.
    """
    meters = token_meters(latent[:, int(class_token) :])
    return {"latent_std": meters["target_std"], "latent_cosine": meters["target_cosine"]}


@torch.no_grad()
def clip_means(latent: Tensor, *, class_token: bool) -> Tensor:
    """Return the mean of each clip's visible tokens, (clips, width)."""
    return at_least_float32(latent[:, int(class_token) :]).mean(1)


@torch.no_grad()
def rankme(x: Tensor) -> Tensor:
    """Return the effective rank: e to the entropy of the singular values' shares.

    It lies between 1 (all rows are multiples of one) and min(rows, features). Source: Garrido et al.,
    "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank"
    (ICML 2023), equations 1 and 2.

    Args:
        x: (rows, features); of more than 1024 rows, 1024 at equal distances are used.

    Returns:
        A scalar; not a number where ``x`` is not finite.
    """
    if len(x) > MOST_CLIPS:
        x = x[torch.arange(MOST_CLIPS, device=x.device) * len(x) // MOST_CLIPS]
    # Eigenvalues of the smaller Gram matrix, in float64: on a GPU several times faster than singular values.
    x = x.double()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    finite = gram.isfinite().all()  # the decomposition would raise an error before the loss is checked
    gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + EPSILON
    return torch.where(finite, torch.exp(-(shares * shares.log()).sum()), torch.nan)


class MatrixRate:
    """The matrix rate of the run's device, measured again every few minutes.

    Other work on the machine lowers a measured rate, which would make the share too large. The highest rate
    of the process is therefore used.
    """

    # For each (type, device, threads): the highest rate, the last rate, and when that was measured.
    measured: ClassVar[dict[tuple[torch.dtype, torch.device, int], tuple[float, float, float]]] = {}

    def __init__(self, device: torch.device, precision: str, *, every: float = 180.0) -> None:
        self.device, self.dtype, self.every = device, DTYPES[precision], every
        self._key = self.dtype, device, torch.get_num_threads()

    @property
    def best(self) -> float:
        """The highest rate, operations per second; 0 before the first measurement."""
        return self.measured.get(self._key, (0.0,))[0]

    def due(self) -> bool:
        """Return whether the last measurement is older than the interval, in seconds."""
        return self._key not in self.measured or time.monotonic() - self.measured[self._key][2] > self.every

    def measure(self) -> tuple[float, float]:
        """Measure for a moment; return the previous rate (0: none) and the new one, operations per second."""
        best, before, _ = self.measured.get(self._key, (0.0, 0.0, 0.0))
        gpu = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpu):  # keep the caller's random state
            sizes = RATE_SIZES.get(self.device.type, RATE_SIZES["cuda"])
            now = matrix_rate(self.dtype, self.device, sizes)
        self.measured[self._key] = max(best, now), now, time.monotonic()
        return before, now
