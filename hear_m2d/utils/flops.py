"""Floating-point operations counted from shapes, and the matrix rate that a device reaches.

share = operations of the matrix products / seconds / matrix rate: how speed is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hear_m2d.model.encoder import EncoderConfig

SQUARE_SIZES = (512, 1024, 2048, 4096)
LARGE_SIZES = (8192, 16384)  # on a GPU, besides the others


def block_operations(width: int, tokens: int, *, depth: int, mlp_ratio: float = 4.0) -> float:
    """Return the operations of ``depth`` transformer blocks over one sequence."""
    linear = 2 * tokens * width * width * (4 + 2 * mlp_ratio)  # qkv, projection, the two of the MLP
    attention = 4 * tokens * tokens * width  # scores, and values weighted by them
    return depth * (linear + attention)


def encoder_operations(config: EncoderConfig, columns: int) -> float:
    """Return the operations of the encoder over one window of that many columns."""
    patches = config.grid[0] * columns
    embedding = 2 * patches * config.width * config.patch_size[0] * config.patch_size[1]
    return embedding + block_operations(
        config.width, patches + config.class_token, depth=config.depth, mlp_ratio=config.mlp_ratio
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def matrix_rate(dtype: torch.dtype, device: torch.device, sizes: Sequence[int] | None = None) -> float:
    """Return the best rate of ``torch.mm`` over square sizes, operations per second.

    Args:
        dtype: Of the matrices.
        device: Where.
        sizes: Rows of the matrices; by default 512 to 4096, to 16384 on a GPU. Fewer take less time.
    """
    if sizes is None:
        sizes = SQUARE_SIZES + (LARGE_SIZES if device.type == "cuda" else ())
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        torch.mm(a, b)
        repeats = max(1, int(2e9 / size**3)) if device.type == "cpu" else 5
        took = min(seconds_of(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(max(2, repeats)))  # type: ignore[misc]
        best = max(best, 2 * size**3 / took)
    return best
