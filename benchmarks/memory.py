"""Memory of embedding long audio, beyond the model, the waveform and what is returned; Linux, CPU.

MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/memory.py --minutes 5 60

With this variable, glibc returns freed memory at once. Without it, the amount that glibc keeps varies.
"""

from __future__ import annotations

import argparse
import gc
import re
import time
from pathlib import Path

import torch
from machine import describe_machine

import hear_m2d
from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import SIZES, EncoderConfig
from hear_m2d.model.hear_model import HearModel


def status(name: str) -> int:
    """Return bytes of this process, as the kernel counts them."""
    found = re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 60.0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    width, depth, heads = SIZES[options.size]
    config = ModelConfig(encoder=EncoderConfig(width=width, depth=depth, heads=heads))
    model = HearModel(config, Options(dtype=options.dtype)).eval()
    model.encoder.to(getattr(torch, options.dtype))
    hear_m2d.get_scene_embeddings(torch.rand(1, 160000), model)  # memory that only the first call needs
    print(f"{describe_machine(torch.device('cpu'))}; {options.size}, {options.dtype}")
    print("| minutes | scenes, MiB | timestamps, MiB | times real time |\n|---|---|---|---|")
    for minutes in options.minutes:
        audio = torch.rand(1, int(minutes * 60 * model.sample_rate)).mul_(0.2).sub_(0.1)
        peaks, start = [], time.perf_counter()
        for function in (hear_m2d.get_scene_embeddings, hear_m2d.get_timestamp_embeddings):
            gc.collect()
            before = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            found = function(audio, model)
            returned = sum(
                x.numel() * x.element_size() for x in (found if type(found) is tuple else (found,))
            )
            peaks.append((status("VmHWM") - before - returned) / 2**20)
            del found
        speed = 2 * minutes * 60 / (time.perf_counter() - start)
        print(f"| {minutes:g} | {peaks[0]:.0f} | {peaks[1]:.0f} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
