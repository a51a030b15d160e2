"""Sections of `gpu_day.py` that measure speed: attention kernels, training, loading, embedding, a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from gpu_common import RESULTS, Place, batch_of, check, random_model, say

if TYPE_CHECKING:
    import torch

    from hear_m2d.pretrain.recipe import Recipe


def attention(place: Place) -> None:
    """Time and error of each attention kernel at the base recipe's lengths, and the cost of a new shape."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    clips = 2 if place.tiny else 256
    dtype = place.low
    ways = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    for name, heads, tokens, width, train in (
        ("encoder", 12, 58, 64, True),
        ("target", 12, 134, 64, False),
        ("predictor", 16, 191, 32, True),
        ("scenes", 12, 191, 64, False),
    ):
        qkv = (
            torch.randn(3, clips, tokens, heads, width, device=place.device)
            .mul_(2)
            .to(dtype)
            .transpose(2, 3)
            .requires_grad_(train)
        )
        up = torch.randn(clips, heads, tokens, width, device=place.device).to(dtype)

        def once(
            qkv: torch.Tensor = qkv, up: torch.Tensor = up, train: bool = train
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            out = sdpa(*qkv.unbind())
            if train:
                qkv.grad = None
                out.backward(up)
            return out.detach(), qkv.grad if train else None

        exact = qkv.detach().double().requires_grad_(train)
        wanted = sdpa(*exact.unbind())
        if train:
            wanted.backward(up.double())
        for way, backend in ways.items():
            try:
                with sdpa_kernel(backend) if backend else torch.enable_grad():
                    out, grad = once()
                    error = float((out.double() - wanted.detach()).norm() / wanted.detach().norm())
                    back = float((grad.double() - exact.grad).norm() / exact.grad.norm()) if train else 0.0
                    took = place.timed(once, repeats=2 if place.tiny else 20)
                check(
                    f"attention {name} {way}",
                    error < 1e-2 and back < 2e-2,
                    f"{took * 1e3:.3f} ms, errors {error:.1e} {back:.1e}",
                )
                RESULTS[f"attention {name} {way} ms"] = took * 1e3
            except RuntimeError as error:
                say(f"attention {name} {way}", " ".join(str(error).split())[:100])
        if name == "scenes" and not place.tiny:
            for way in ("default", "flash"):
                with torch.no_grad(), sdpa_kernel(ways[way]) if ways[way] else torch.enable_grad():
                    start = time.perf_counter()
                    for count in range(1, 21):
                        sdpa(*qkv.detach()[:, :count, :, : 10 * count].unbind())
                    place.sync()
                    say(f"20 new shapes, {way}, ms each", round((time.perf_counter() - start) * 1e3 / 20, 1))


def training_speed(place: Place) -> None:
    """Share of the sustained matrix rate over the clips of a pass; then one change after another."""
    import torch
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from hear_m2d.pretrain.objectives.build import build_objective
    from hear_m2d.pretrain.recipe import load_recipe
    from hear_m2d.pretrain.training.estimate import memory, operations_per_clip
    from hear_m2d.pretrain.training.step import Trainer

    began = time.perf_counter()
    rate = place.rate(place.low, (256,) if place.tiny else (8192, 16384))
    say("rate TFLOP/s", round(rate / 1e12, 1))
    usual = nn.LayerNorm.forward

    def low(
        self: nn.LayerNorm, x: torch.Tensor
    ) -> (
        torch.Tensor
    ):  # LayerNorm that reads and writes bfloat16; with autocast it would be three passes in float32
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.layer_norm(
                x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
            )

    def measure(
        label: str, recipe: Recipe, clips: int, *, backends: Any = None, norm: Any = usual, steps: int = 6
    ) -> tuple[Any, float]:
        import contextlib
        import gc

        gc.collect()  # the variant before
        nn.LayerNorm.forward = norm
        objective = trainer = batch = None
        try:
            if place.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            objective = build_objective(recipe).to(place.device)
            trainer = Trainer(
                objective, recipe, device=place.device, precision="float32" if place.tiny else "bfloat16"
            )
            batch = batch_of(recipe, clips, place.device)

            def step() -> None:
                trainer.step(batch, rate=1e-4)
                objective.momentum_update(0.9999)

            with sdpa_kernel(backends) if backends else contextlib.nullcontext():
                start = time.perf_counter()
                step()
                place.sync()
                first = time.perf_counter() - start
                cpu = time.perf_counter()
                step()
                cpu = time.perf_counter() - cpu  # the time to enqueue a step
                took = place.timed(step, repeats=steps, warm=1)
            share = clips * operations_per_clip(recipe) / took / rate
            peak = torch.cuda.max_memory_allocated() / 2**30 if place.device.type == "cuda" else 0.0
            state, clip = memory(recipe, precision="bfloat16")
            say(
                label,
                f"{clips} clips: {took * 1e3:.1f} ms, {clips / took:.0f} clips/s, share {share:.3f}, "
                f"enqueued in {cpu * 1e3:.0f} ms, first {first:.1f} s, peak {peak:.1f} GiB "
                f"(planned {(state + clip * clips) / 2**30:.1f})",
            )
            RESULTS[f"{label} {clips}"] = {"ms": took * 1e3, "share": share, "peak": peak, "first_s": first}
            return step, share
        except torch.OutOfMemoryError as error:
            say(f"{label} {clips}", f"out of memory: {str(error)[:80]}")
        except Exception as error:  # if one variant fails, the others are still measured
            say(f"{label} {clips}", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            nn.LayerNorm.forward = usual
        return None, 0.0

    base = load_recipe("demo_m2d" if place.tiny else "m2d_base")
    mae = load_recipe("demo_msm_mae" if place.tiny else "msm_mae_base_608")
    size = 4 if place.tiny else 512
    for clips in (2, 4) if place.tiny else (64, 256, 512, 1024, 2048):
        measure("eager", base, clips, steps=2 if place.tiny else max(3, 1500 // clips))
    measure("eager, LayerNorm in bfloat16", base, size, norm=low)
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        if not place.tiny:
            measure(
                f"eager, {name}",
                base,
                size,
                backends=[backend, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
            )
    measure("eager MSM-MAE", mae, size)
    step, _ = measure("eager, profiled", base, size, steps=2)
    if step and place.device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
            step()
            place.sync()
        table = trace.key_averages().table(
            sort_by="self_device_time_total", row_limit=40, max_name_column_width=90
        )
        (place.out / "profile.txt").write_text(table)
    del step
    if not place.tiny:
        torch._dynamo.config.recompile_limit = 64
        _, share = measure("compiled blocks", dataclasses.replace(base, compile=True), size)
        check("a share of 0.40", share >= 0.40, round(share, 3))
        if time.perf_counter() - began < 90:
            measure(
                "compiled blocks, flash",
                dataclasses.replace(base, compile=True),
                size,
                backends=[SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
            )


def loader(place: Place) -> None:
    """Clips a second that the loader processes bring onto the device."""
    from hear_m2d.pretrain.data.crops import Crops
    from hear_m2d.pretrain.data.loader import batches
    from hear_m2d.pretrain.data.prepared import LogMelData
    from hear_m2d.pretrain.data.sampling import StepBatches

    found = LogMelData(place.data)
    size, frames = (8, 64) if place.tiny else (2048, 608)
    for workers in (0,) if place.tiny else (1, 2, 4, 8, 15):
        steps = StepBatches(0, 100_000, batch_size=size, n_clips=len(found), seed=0)
        stream = batches(
            Crops(found, frames=frames),
            steps,
            share=slice(0, size),
            patches=frames // 16 * 5,
            device=place.device,
            workers=workers,
        )
        for _ in range(1 + 2 * workers):
            next(stream)
        place.sync()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < (0.5 if place.tiny else 3.5):
            next(stream)
            count += size
        place.sync()
        rate = count / (time.perf_counter() - start)
        stream.close()
        say(f"loader, {workers} processes, clips/s onto the device", round(rate))
        if workers == 4:
            check("four loader processes feed 4,700 clips/s", rate > 4700, round(rate))


def embed_speed(place: Place) -> None:
    """Scenes in three precisions, and `hear-m2d embed` of files."""
    import torch

    from hear_m2d.checkpoint.format import save_checkpoint
    from hear_m2d.model.encoder import encoder_operations

    rates = {}
    for name, dtype, products in (
        ("float32", torch.float32, "highest"),
        ("TF32", torch.float32, "high"),
        ("bfloat16", place.low, "highest"),
    ):
        torch.set_float32_matmul_precision(products)
        model = random_model(place)
        model.encoder.to(dtype)
        model = model.to(place.device)
        clips = 2 if place.tiny else 192
        rates[name] = rate = place.rate(dtype, (256,) if place.tiny else (8192,))
        config = model.config.encoder
        count = encoder_operations(config, 38) + encoder_operations(config, 25)
        for windows in (None,) if place.tiny else (None, 172):
            model.batch_windows = windows
            for where in ("cpu", place.device):
                audio = [clip.to(where) for clip in torch.rand(clips, 160000) * 0.2 - 0.1]
                took = place.timed(lambda m=model, a=audio: m.scene_embeddings(a), repeats=2, warm=1)
                say(
                    f"scenes {name}, audio on {where}, {windows or 'chosen'} windows a pass",
                    f"{clips / took:.0f} clips/s, {clips * 10 / took / 60:.0f} audio hours a minute, "
                    f"share {clips * count / took / rate:.2f}",
                )
    torch.set_float32_matmul_precision("highest")
    save_checkpoint(place.work / "base.safetensors", random_model(place))
    audio = place.audio()
    assert audio is not None
    files = sorted(str(path) for path in audio.rglob("*") if path.suffix in (".ogg", ".wav"))
    (place.work / "list.txt").write_text("\n".join(files[: 8 if place.tiny else 800]) + "\n")
    for suffix, out in (("npy", "embedded"), ("parquet", "embedded.parquet")):
        words = [
            "embed",
            "--list",
            place.work / "list.txt",
            "--force",
            "--model",
            place.work / "base.safetensors",
            "--out",
            place.work / out,
            "--dtype",
            str(place.low).split(".")[1],
            "--device",
            place.device,
        ]
        done = place.cli(*words, "--workers", 1 if place.tiny else 15)
        speed_lines = [line for line in done.stdout.splitlines() if "hours per minute" in line]
        check(f"hear-m2d embed, {suffix}", done.returncode == 0, speed_lines or done.stderr[-300:])


def run(place: Place) -> None:
    """Three minutes of the base recipe at full speed, to its checkpoint."""
    import torch

    import hear_m2d

    path = place.out / "training_speed.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    step = known.get("compiled blocks 512", known.get("eager 512", {"ms": 150.0}))["ms"] * 4 / 1e3
    compiled = "compiled blocks 512" in known
    left = float(os.environ.get("GPU_DAY_LEFT", 225))
    steps = 4 if place.tiny else max(20, int(min(170, left - 50) / step))
    words: list[object] = ["pretrain", "--recipe", "demo_m2d" if place.tiny else "m2d_base"]
    words += ["--data", place.data, "--out", place.work / "run", "--steps", steps]
    words += ["--log-every", 2 if place.tiny else 5, "--save-every", 150, "--device", place.device]
    words += ["--batch-size", 8] if place.tiny else ["--micro-batch-size", 512, "--workers", 8]
    words += ["--set", f"compile={str(compiled).lower()}"]
    log = (place.out / "run.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "hear_m2d.cli", *map(str, words)], cwd=place.work, stdout=log, stderr=log
    )
    seen, end = [], time.monotonic() + min(215, left - 12)
    while process.poll() is None:
        if time.monotonic() > end:
            process.send_signal(signal.SIGTERM)
        if place.device.type == "cuda":
            query = [
                "nvidia-smi",
                "--query-gpu=clocks.sm,power.draw,utilization.gpu,memory.used",
                "--format=csv,noheader,nounits",
            ]
            seen.append(subprocess.run(query, capture_output=True, text=True).stdout.strip())
        time.sleep(0.5 if place.tiny else 5)
    say("clock MHz, W, %, MiB", seen[len(seen) // 2 :: 6])
    lines = [json.loads(line) for line in (place.work / "run/metrics.jsonl").read_text().splitlines()]
    shutil.copy(place.work / "run/metrics.jsonl", place.out / "run_metrics.jsonl")
    later = [line for line in lines if "share" in line][2:] or lines
    for name in ("clips_per_s", "share", "data_wait"):
        say(f"{name}, median", round(statistics.median(line[name] for line in later), 4))
    say("loss, first and last", [round(lines[0]["loss"], 4), round(lines[-1]["loss"], 4)])
    say("rankme, last", round(lines[-1].get("rankme", 0), 1))
    check("the run ends by itself", process.returncode == 0, process.returncode)
    if not place.tiny:  # the steps of a tiny network end before the next batch is read
        check("the data keeps up", statistics.median(line["data_wait"] for line in later) < 0.02)
    check(
        "losses are finite and fall",
        all(math.isfinite(line["loss"]) for line in lines) and lines[-1]["loss"] < lines[0]["loss"],
    )
    if process.returncode == 0:
        model = hear_m2d.load_model(place.work / "run/checkpoint.safetensors").to(place.device)
        scene = hear_m2d.get_scene_embeddings(torch.rand(2, 48000) - 0.5, model)
        check("its checkpoint embeds", bool(scene.isfinite().all()))
