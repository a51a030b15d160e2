"""Which device to use, and whether it computes in bfloat16 itself."""

from __future__ import annotations

from pathlib import Path

import torch


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
        raise ValueError(f"device {name!r} cannot be used here: {error}") from error
    return device


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
