"""What tells a network that learns from one that collapses, and a fast machine from an idle one.

The meters of the encoder's output are computed in steps that are logged, on the device, and in no others.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hear_m2d.pretrain.objectives.base import Objective, at_least_float32
from hear_m2d.pretrain.objectives.m2d import token_meters
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.operations import operations_per_clip
from hear_m2d.utils.flops import matrix_rate

MOST_CLIPS = 1024  # that RankMe looks at
EPSILON = 1e-7  # RankMe's own
# Of matrices large enough to reach a device's rate, and small enough to be multiplied in a moment.
RATE_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}


@torch.no_grad()
def latent_meters(latent: Tensor, *, class_token: bool) -> dict[str, Tensor]:
    """Return the spread and the mean cosine of the encoder's tokens, the class token left out.

    Args:
        latent: Encoder output, (clips, [1 +] visible, width).
        class_token: Whether the first token is one.

    Returns:
        ``latent_std``: standard deviation over tokens, mean over features (0: collapsed). ``latent_cosine``:
        mean cosine between two tokens of the batch (1: collapsed).
    """
    found = token_meters(latent[:, int(class_token) :])
    return {"latent_std": found["target_std"], "latent_cosine": found["target_cosine"]}


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
        x: (rows, features); of more than 1024 rows that many are taken, at equal distances.

    Returns:
        A scalar; not a number where ``x`` is not finite.
    """
    if len(x) > MOST_CLIPS:
        x = x[torch.arange(MOST_CLIPS, device=x.device) * len(x) // MOST_CLIPS]
    # From the smaller Gram matrix, in float64: on a GPU several times faster than the singular values.
    x = x.double()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    finite = gram.isfinite().all()  # the decomposition would raise, before the loss tells what is wrong
    gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + EPSILON
    return torch.where(finite, torch.exp(-(shares * shares.log()).sum()), torch.nan)


def step_operations(recipe: Recipe, objective: Objective) -> float:
    """Return the operations of one clip's step, a teacher's included."""
    teacher = getattr(objective, "teacher", None)
    return operations_per_clip(recipe, None if teacher is None else teacher.encoder.config)


def device_rate(device: torch.device, precision: str) -> float:
    """Return the device's matrix rate, operations per second, measured in a moment.

    Args:
        device: Where.
        precision: What the network computes in.
    """
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)
    return _rate(dtype, device, torch.get_num_threads())


@functools.cache
def _rate(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpu):  # the caller's random state is not ours to use
        return matrix_rate(dtype, device, RATE_SIZES.get(device.type, RATE_SIZES["cuda"]))
