"""The machine: its devices and processors, what computes in bfloat16 itself, how much fits in it at once."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.utils.errors import InputError

# Tokens that fill the matrix units: more of them in one pass only cost memory.
ENOUGH_TOKENS = {"cpu": 3072, "cuda": 8192}
_SHARE = 0.25  # of the free memory that one pass may take


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
    """Return how many bytes are free on a device; None where it cannot be told."""
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


def windows_per_pass(
    config: EncoderConfig, frames: int, *, layers: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Return how many windows to encode at once: enough to fill the device, within its free memory.

    Args:
        config: The encoder.
        frames: Frames of a window.
        layers: How many layers' outputs are kept.
        dtype: Of the encoder.
        device: Where it is.
    """
    tokens = config.grid[0] * (frames // config.patch_size[1]) + config.class_token
    enough = max(1, ENOUGH_TOKENS.get(device.type, ENOUGH_TOKENS["cuda"]) // tokens)
    free = free_memory(device)
    if free is None:
        return enough
    # A block's activations: its input, the norm, q, k, v, the MLP's hidden features before and after GELU;
    # attention scores, where no fused kernel avoids them; then the outputs in float32.
    block = tokens * config.width * (6 + 2 * config.mlp_ratio) + config.heads * tokens * tokens
    outputs = tokens * config.width * (config.depth if layers > 1 else 2) * 4
    return max(1, min(enough, int(_SHARE * free / (block * dtype.itemsize + outputs))))
