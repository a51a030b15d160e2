"""The machine: its devices, processors and free memory, and which devices compute in bfloat16."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import torch

from hear_m2d.utils.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by name; ``auto`` is the first GPU, else the CPU.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {error}") from error
    return device


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 matrix instructions, so that bfloat16 is the faster choice."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        try:
            words = set(Path("/proc/cpuinfo").read_text().split())
        except OSError:  # not Linux: no way to ask without private functions
            return False
        return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


@functools.cache
def warn_of_slow_bfloat16(dtype: torch.dtype, device: torch.device) -> None:
    """Warn, once, where bfloat16 on a CPU is emulated: it would be slower than float32, not faster."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not native_bfloat16(device):
        warnings.warn(
            "this CPU has no bfloat16 instructions: dtype='bfloat16' is slower here than 'float32'",
            stacklevel=2,
        )


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes are free on a device; None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
        except (OSError, ValueError):
            return None
        return int(available) * 1024
    return None
