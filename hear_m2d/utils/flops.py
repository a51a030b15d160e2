"""The matrix rate of a device, and the time of work on it.

Speed is reported as a share: operations of the matrix products / seconds / matrix rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

SQUARE_SIZES = (512, 1024, 2048, 4096)
LARGE_SIZES = (8192, 16384)  # additional sizes on a GPU
WARM_UP_S = 0.5  # seconds of work before a GPU is timed


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes; waits for the device before and after it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def matrix_rate(dtype: torch.dtype, device: torch.device, sizes: Sequence[int] | None = None) -> float:
    """Return the best rate of ``torch.mm`` over square sizes, operations per second.

    Args:
        dtype: Of the matrices.
        device: Where to measure.
        sizes: Rows of the matrices; by default 512 to 4096, to 16384 on a GPU. Fewer take less time.
    """
    if sizes is None:
        sizes = SQUARE_SIZES + (LARGE_SIZES if device.type == "cuda" else ())
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b)
        if device.type == "cuda":
            seconds = _seconds_on_gpu(product)
        else:
            product()
            seconds = min(seconds_of(product, device) for _ in range(max(2, int(2e9 / size**3))))
        best = max(best, 2 * size**3 / seconds)
    return best


def _seconds_on_gpu(product: Callable[[], Tensor]) -> float:
    """Time many products together, on a warm device: an idle GPU runs at a fraction of its clock rate."""
    start = time.perf_counter()
    calls = 0
    while time.perf_counter() - start < WARM_UP_S:
        product()
        torch.cuda.synchronize()
        calls += 1
    calls = max(5, calls)

    def work() -> None:
        for _ in range(calls):
            product()

    return seconds_of(work, torch.device("cuda")) / calls
