"""Measurements relative to this machine's matrix rate, and code shared by two benchmarks.

share = operations of the matrix products / seconds / matrix rate, the rate measured just before and just
after in the same process, dtype and threads.
"""

from __future__ import annotations

import argparse
import platform
import re
import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hear_m2d.model.encoder import SIZES
from hear_m2d.utils.flops import matrix_rate, seconds_of


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of several measurements."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Summarize."""
        return Spread(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def arguments(description: str | None, *, batch: int) -> argparse.ArgumentParser:
    """Return a parser of the options of both benchmarks: the network, the batch, the machine."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--frames", type=int, default=608)
    parser.add_argument("--patch", default="16x16")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    return parser


HEADER = """\
| dtype | clips/s | times real time | share of matrix rate | matrix rate, GFLOP/s | peak MiB |
|---|---|---|---|---|---|"""


def row(dtype: str, found: Measured, *, batch: int, clip_s: float) -> str:
    """Return a table's row for batches of clips of that length."""
    clips = batch / found.seconds.median
    return (
        f"| {dtype} | {clips:.2f} | {clips * clip_s:.1f} | {found.share:.2f} "
        f"| {found.rate.median / 1e9:.0f} | {found.peak_mib:.0f} |"
    )


@dataclass(frozen=True)
class Measured:
    """Result of :func:`measure`: seconds per call, matrix rate, share of it, peak memory in MiB."""

    seconds: Spread
    rate: Spread
    share: Spread
    peak_mib: float


def measure(
    work: Callable[[], object], *, operations: float, pairs: int, dtype: torch.dtype, device: torch.device
) -> Measured:
    """Time ``work`` between two readings of the matrix rate, several times; then its peak memory."""
    work()
    reset_peak(device)
    work()
    peak = peak_memory(device)
    seconds, rates, shares = [], [], []
    before = matrix_rate(dtype, device)
    for _ in range(pairs):
        took = seconds_of(work, device)
        after = matrix_rate(dtype, device)
        seconds.append(took)
        rates.append(max(before, after))
        shares.append(operations / took / rates[-1])
        before = after
    return Measured(Spread.of(seconds), Spread.of(rates), Spread.of(shares), peak)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far; on systems other than Linux a process's peak since its start remains."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak_memory(device: torch.device) -> float:
    """Return the most memory that was in use, MiB: of the process, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_machine(device: torch.device) -> str:
    """Return one line on the hardware and the library."""
    name = platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        try:
            with Path("/proc/cpuinfo").open() as file:
                name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
