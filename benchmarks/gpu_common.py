"""Shared by the sections of `gpu_day.py`: results written line by line, timing, small models and batches."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hear_m2d.model.hear_model import HearModel
    from hear_m2d.pretrain.recipe import Recipe

RESULTS: dict[str, object] = {}
RESULT_FILES: list[Path] = []  # the file of this section's results: a section that is killed keeps its lines


def say(name: str, value: object) -> None:
    """Write a result to the file of results, and print it."""
    RESULTS[name] = value
    RESULT_FILES[0].write_text(json.dumps(RESULTS, default=str))
    print(f"  {name}: {value}", flush=True)


def check(name: str, passed: bool, note: object = "") -> None:
    """Write whether a check passed, and print it."""
    RESULTS[f"check {name}"] = bool(passed)
    RESULT_FILES[0].write_text(json.dumps(RESULTS, default=str))
    print(f"  {'PASS' if passed else 'FAIL'} {name} {note}", flush=True)


class Place:
    """The machine, the folders, and how to time there.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.tiny, self.out, self.repo = options.tiny, Path(options.out), Path(options.repo).resolve()
        self.device = torch.device("cpu" if options.tiny else "cuda")
        self.work = Path(options.work).resolve()
        self.data = self.work / "data"
        self.low = torch.float32 if options.tiny else torch.bfloat16  # not every CPU computes in bfloat16
        self.cuda = self.device.type == "cuda"
        if options.tiny:
            torch.set_num_threads(1)

    def audio(self) -> Path | None:
        """Return the folder of real audio, if there is one."""
        return next(
            (path for path in (self.repo / ".gpu/corpus", self.work / "audio") if path.is_dir()), None
        )

    def sync(self) -> None:
        """Wait for the device."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object], *, repeats: int, warm: int = 2) -> float:
        """Return the seconds of one call: device events around all repeats, after a warm-up."""
        import torch

        for _ in range(warm):
            work()
        self.sync()
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            return (time.perf_counter() - start) / repeats
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        self.sync()
        return begin.elapsed_time(end) / 1e3 / repeats

    def rate(self, dtype: torch.dtype, sizes: Sequence[int]) -> float:
        """Return the sustained rate of torch.mm, operations a second: at least a quarter second a size."""
        import torch

        best = 0.0
        for size in sizes:
            a = torch.randn(size, size, device=self.device).to(dtype)
            b = torch.randn(size, size, device=self.device).to(dtype)

            def product(a: Tensor = a, b: Tensor = b) -> Tensor:
                return torch.mm(a, b)

            once = self.timed(product, repeats=3)
            took = self.timed(product, repeats=max(3, int(0.25 / once)), warm=0)
            best = max(best, 2 * size**3 / took)
        return best

    def cli(self, *words: object, limit: float = 600) -> subprocess.CompletedProcess[str]:
        """Run hear-m2d outside of the checkout."""
        command = [sys.executable, "-m", "hear_m2d.cli", *map(str, words)]
        return subprocess.run(command, cwd=self.work, capture_output=True, text=True, timeout=limit)


def small_recipe(**more: Any) -> Recipe:
    """Return a recipe of four narrow blocks."""
    from hear_m2d.model.encoder import EncoderConfig
    from hear_m2d.pretrain.objectives.decoder import DecoderConfig
    from hear_m2d.pretrain.recipe import OptimizerConfig, Recipe

    fields: dict[str, Any] = {
        "objective": "m2d",
        "momentum_start": 0.99,
        "momentum_end": 0.999,
        "batch_size": 24,
        "steps": 24,
        "compile": False,
        "encoder": EncoderConfig(input_size=(80, 208), width=192, depth=4, heads=3),
        "decoder": DecoderConfig(width=128, depth=2, heads=4),
        "optimizer": OptimizerConfig(base_lr=3e-3),
    }
    return Recipe(**{**fields, **more})


def random_model(place: Place, *, options: dict[str, Any] | None = None, tiny: bool = False) -> HearModel:
    """Return an untrained model of base size (a small one with ``tiny``) whose norms are not the identity."""
    import torch

    from hear_m2d.model.config import ModelConfig, Options
    from hear_m2d.model.encoder import EncoderConfig
    from hear_m2d.model.hear_model import HearModel

    sizes = {"width": 64, "depth": 2, "heads": 2} if tiny or place.tiny else {}
    torch.manual_seed(0)
    model = HearModel(ModelConfig(encoder=EncoderConfig(**sizes)), Options.parse(options or {})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_of(
    recipe: Recipe, clips: int, device: torch.device | str, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return a batch of noise for a recipe."""
    import torch

    from hear_m2d.pretrain.objectives.masking import mask_noise

    x = torch.randn(clips, 1, 80, recipe.frames, generator=torch.Generator().manual_seed(1))
    noise = mask_noise(0, 0, clips, math.prod(recipe.encoder.grid))
    return {"x": x.to(device, dtype), "noise": noise.to(device)}
