"""Sections of `gpu_day.py` that check results: the GPU against the CPU, resuming, the official harness."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_common import Place, batch_of, check, random_model, say, small_recipe

if TYPE_CHECKING:
    import torch

    from hear_m2d.pretrain.recipe import Recipe


def facts(place: Place) -> None:
    """Versions, clocks, memory, and the matrix rate measured in several ways."""
    import torch

    from hear_m2d.pretrain.training.metrics import MatrixRate

    say("torch", f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}, CUDA {torch.version.cuda}")
    say("cpus", os.cpu_count())
    say("dev/shm GiB", round(shutil.disk_usage("/dev/shm").total / 2**30, 1))
    say("compilers", {name: bool(shutil.which(name)) for name in ("gcc", "g++", "nvcc")})
    if place.device.type == "cuda":
        query = "name,driver_version,mig.mode.current,clocks.sm,power.limit,memory.total"
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        say("nvidia-smi", answer.stdout.strip())
        free, total = torch.cuda.mem_get_info()
        say("memory GiB free of all", f"{free / 2**30:.1f} of {total / 2**30:.1f}")
    cold = MatrixRate(place.device, "float32" if place.tiny else "bfloat16").measure()[
        1
    ]  # as in a run: the GPU's clocks are idle
    sizes = (256,) if place.tiny else (4096, 8192, 16384)
    warm = place.rate(place.low, sizes)
    say("rate bfloat16 TFLOP/s, sustained", round(warm / 1e12, 1))
    check(
        "the rate that a run measures at its start is within 10 %",
        place.tiny or 0.9 < cold / warm < 1.1,
        round(cold / warm, 3),
    )
    say("rate float32", round(place.rate(torch.float32, sizes[:2]) / 1e12, 1))
    torch.set_float32_matmul_precision("high")
    say("rate TF32", round(place.rate(torch.float32, sizes[:2]) / 1e12, 1))
    big = torch.empty(1 << (20 if place.tiny else 31), dtype=torch.uint8, device=place.device)
    into = torch.empty_like(big)
    say(
        "copy TB/s, read and written",
        round(2 * big.numel() / place.timed(lambda: into.copy_(big), repeats=10) / 1e12, 2),
    )
    say("rate", warm)


def data(place: Place) -> None:
    """Prepare real audio if there is any (.day/corpus), else generated noise."""
    import numpy as np
    import soundfile

    audio = place.audio()
    if audio is None:
        audio = place.work / "audio"
        audio.mkdir(exist_ok=True)
        chance = np.random.default_rng(0)
        for index in range(24 if place.tiny else 2400):
            wave = (0.1 * chance.standard_normal(16000 * (3 if place.tiny else 10))).astype(np.float32)
            soundfile.write(audio / f"{index:05d}.wav", wave, 16000)
    start = time.perf_counter()
    done = place.cli("prepare", audio, place.data, "--workers", 1 if place.tiny else 12)
    check("prepare", done.returncode == 0, (done.stderr or done.stdout)[-300:] if done.returncode else "")
    say("prepare seconds", round(time.perf_counter() - start, 1))
    say("audio", str(audio))


def embed_equal(place: Place) -> None:
    """Compare float32, TF32 and bfloat16 on the GPU with float64 on the CPU, for audio on either device."""
    import torch

    generator = torch.Generator().manual_seed(3)
    lengths = (
        (1, 199, 2561, 41000) if place.tiny else (1, 199, 201, 2561, 16000, 97600, 97441, 160000, 331000)
    )
    clips = [0.2 * torch.rand(n, generator=generator) - 0.1 for n in lengths]
    for kind in ("interpolate", "dense"):
        model = random_model(place, options={"timestamps": kind})
        exact = copy.deepcopy(model)
        exact.encoder.double()
        wanted = exact.scene_and_timestamp_embeddings(clips)
        for name, dtype, products, limit in (
            ("float32", torch.float32, "highest", 2e-5),
            ("TF32", torch.float32, "high", 3e-3),
            ("bfloat16", place.low, "highest", 3e-2),
        ):  # fmt: skip
            torch.set_float32_matmul_precision(products)
            moved = copy.deepcopy(model)
            moved.encoder.to(dtype)
            moved = moved.to(place.device)
            for where in ("cpu", place.device):
                found = moved.scene_and_timestamp_embeddings([clip.to(where) for clip in clips])
                worst = 0.0
                for a, b in zip([*found[0], *found[1]], [*wanted[0], *wanted[1]], strict=True):
                    a = a.cpu().double()
                    worst = max(
                        worst, float((a - b).norm() / b.double().norm()) if a.isfinite().all() else math.inf
                    )
                times = all(torch.equal(a.cpu(), b) for a, b in zip(found[2], wanted[2], strict=True))
                check(
                    f"{kind}, {name}, audio on {where}: error {worst:.1e} below {limit:g}",
                    worst < limit and times,
                )
            torch.set_float32_matmul_precision("highest")
        batch = torch.stack([clips[-1], clips[-1].flip(0)]).to(place.device)
        alone = torch.stack([moved.scene_embeddings(one[None])[0] for one in batch])
        off = float((moved.scene_embeddings(batch) - alone).norm() / alone.norm())
        check(f"{kind}: a batch is its clips", off < 1e-2, f"{off:.1e}")


def long_clips(place: Place) -> None:
    """Clips of 20 and 60 minutes in bounded memory, with timestamps to the end."""
    import torch

    import hear_m2d

    model = random_model(place).to(place.device)
    for minutes in (1,) if place.tiny else (20, 60):
        audio = torch.rand(1, minutes * 60 * 16000) * 0.2 - 0.1
        if place.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        hear_m2d.get_scene_embeddings(audio, model)
        _, ms = hear_m2d.get_timestamp_embeddings(audio, model)
        place.sync()
        say(f"{minutes} minutes: seconds for scene and timestamps", round(time.perf_counter() - start, 2))
        steps = (ms[0, 1:] - ms[0, :-1]).double()
        check(
            f"{minutes} minutes: timestamps 40 ms apart to the end",
            bool((steps - 40).abs().max() < 0.3) and float(ms[0, -1]) <= minutes * 60e3,
        )
        if place.device.type == "cuda":
            used = torch.cuda.max_memory_reserved() / 1e9
            check(f"{minutes} minutes in 16 GB", used <= 16, f"{used:.2f} GB reserved")


def step_equal(place: Place) -> None:
    """Compare five steps on the CPU and on the GPU: in parts, in bfloat16, compiled, and run twice."""
    import torch

    from hear_m2d.pretrain.objectives.build import build_objective
    from hear_m2d.pretrain.training.step import Trainer

    def losses(
        recipe: Recipe, device: str, precision: str, steps: int = 5, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        objective = build_objective(recipe).to(
            device, torch.float64 if precision == "float64" else torch.float32
        )
        trainer, found = (
            Trainer(objective, recipe, device=torch.device(device), precision=precision, **options),
            [],
        )
        batch = batch_of(recipe, recipe.batch_size, device, torch.float64 if precision == "float64" else None)
        for step in range(steps):
            result = trainer.step(batch, rate=1e-3 * (step + 1), with_metrics=step == steps - 1)
            objective.momentum_update(0.99)
            found.append([float(result.loss), float(result.norm)])
        weights = torch.cat([p.detach().cpu().double().flatten() for p in objective.parameters()])
        return torch.tensor(found, dtype=torch.float64), weights

    gpu = str(place.device)
    for kind in ("m2d", "msm_mae"):
        recipe = small_recipe(objective=kind, **({} if kind == "m2d" else {"norm_pix_loss": False}))
        if kind == "msm_mae":
            recipe = dataclasses.replace(recipe, mask_ratio=0.75)
        for precision, first, fifth in (
            ("float64", 1e-11, 1e-7),
            ("float32", 2e-5, 2e-3),
        ):  # AdamW's first steps enlarge rounding
            (here, a), (there, b) = losses(recipe, "cpu", precision), losses(recipe, gpu, precision)
            off = ((here - there) / here).abs().amax(1)
            fits = float(off[0]) < first and float(off.max()) < fifth
            check(
                f"{kind} {precision}: five steps on CPU and GPU, losses and norms",
                fits,
                f"{off[0]:.1e} to {off.max():.1e}; weights {float((a - b).norm() / a.norm()):.1e}",
            )
        exact, _ = losses(recipe, gpu, "float32")
        parts, _ = losses(recipe, gpu, "float32", micro_batch_size=7)
        check(f"{kind}: a batch in parts", float(((exact - parts) / exact).abs().max()) < 2e-3)
        if not place.tiny:
            rounded, _ = losses(recipe, gpu, "bfloat16")
            check(
                f"{kind}: bfloat16 near float32",
                float(((exact - rounded)[:, 0] / exact[:, 0]).abs().max()) < 2e-2,
            )
        if kind == "m2d" and place.device.type == "cuda":
            start = time.perf_counter()
            compiled, _ = losses(dataclasses.replace(recipe, compile=True), gpu, "float32")
            check(
                "compiled blocks",
                float(((exact - compiled) / exact).abs().max()) < 2e-3,
                f"{time.perf_counter() - start:.0f} s",
            )
            torch.use_deterministic_algorithms(True)
            try:
                once, a = losses(recipe, gpu, "bfloat16")
                twice, b = losses(recipe, gpu, "bfloat16")
                check(
                    "with deterministic algorithms: the same bits twice",
                    torch.equal(once, twice) and torch.equal(a, b),
                )
            except RuntimeError as error:
                say("with deterministic algorithms", " ".join(str(error).split())[:150])
            torch.use_deterministic_algorithms(False)
            once, a = losses(recipe, gpu, "bfloat16")
            twice, b = losses(recipe, gpu, "bfloat16")
            say("without them, the same bits twice", bool(torch.equal(a, b)))


def resume(place: Place) -> None:
    """Continue a run that SIGKILL ended after a state, and stop a run by SIGTERM."""
    from hear_m2d.pretrain.data.prepared import LogMelData

    data = place.data
    while not (data / "data.json").exists():  # the section that makes it runs at the same time
        time.sleep(0.5)
    recipe = small_recipe(steps=60, batch_size=12 if place.tiny else 96, description="gpu day")
    fields = recipe.to_json()
    lines = [f"{k} = {json.dumps(v)}" for k, v in fields.items() if isinstance(v, str | int | float)]
    for table in ("encoder", "decoder", "optimizer"):
        lines += [f"{table}.{k} = {json.dumps(v)}" for k, v in fields[table].items()]
    (place.work / "small.toml").write_text("\n".join(lines) + "\n")
    say("clips", len(LogMelData(data)))

    def command(out: Path) -> list[str]:
        words = ["pretrain", "--recipe", place.work / "small.toml", "--data", data, "--out", out]
        words += ["--save-every", 20, "--log-every", 5, "--device", place.device]
        words += ["--set", "precision=float32", "--workers", 0 if place.tiny else 4]
        return [sys.executable, "-m", "hear_m2d.cli", *map(str, words)]

    def lines_of(out: Path) -> dict[int, float]:
        return {
            line["step"]: line["loss"]
            for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        }

    whole, killed, stopped = (place.work / name for name in ("whole", "killed", "stopped"))
    undisturbed = subprocess.Popen(
        command(whole), cwd=place.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for out, number, code in ((killed, signal.SIGKILL, -signal.SIGKILL), (stopped, signal.SIGTERM, 143)):
        process = subprocess.Popen(
            command(out), cwd=place.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (out / "state-20.safetensors").exists():
            time.sleep(0.02)
        process.send_signal(number)
        check(f"{number.name}: exit code", process.wait() in (code, 0), process.returncode)
        again = subprocess.run(command(out), cwd=place.work, capture_output=True, text=True)
        check(
            f"{number.name}: the same command ends it",
            again.returncode == 0,
            again.stderr[-300:] if again.returncode else "",
        )
        check("a whole run", undisturbed.wait() == 0)
        a, b = lines_of(whole), lines_of(out)
        off = max(abs(a[step] - b[step]) / a[step] for step in a)
        check(
            f"{number.name}: the losses of the whole run", a.keys() == b.keys() and off < 1e-2, f"{off:.1e}"
        )


def hear(place: Place) -> None:
    """The official harness on two tiny tasks; it takes the GPU by itself."""
    from hear_m2d.checkpoint.format import save_checkpoint

    spec = importlib.util.spec_from_file_location("tiny_tasks", place.repo / "tests/evaluation/tiny_tasks.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tasks = place.work / "tasks"
    tasks.mkdir(exist_ok=True)
    tiny.scene_multiclass(tasks)
    tiny.events(tasks)
    save_checkpoint(place.work / "tiny.safetensors", random_model(place, tiny=True))
    words = [
        "--model",
        place.work / "tiny.safetensors",
        "--tasks-dir",
        tasks,
        "--out",
        place.work / "scores",
        "--grid",
        "faster",
        "--grid-points",
        1,
    ]
    done = place.cli("evaluate", *words)
    found = place.work / "scores/results.json"
    results = json.loads(found.read_text()) if found.exists() else {"tasks": [], "environment": {}}
    say("harness on", results["environment"].get("device"))
    say("scores", {task["task"]: task.get("score", task.get("error")) for task in results["tasks"]})
    fits = done.returncode == 0 and (
        place.tiny or str(results["environment"].get("device")).startswith("cuda")
    )
    check("heareval", fits, (done.stderr or "")[-400:] if not fits else "")


def gpu_tests(place: Place) -> None:
    """The tests marked gpu."""
    words = ["-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        [sys.executable, *words], cwd=place.repo, capture_output=True, text=True, timeout=600
    )
    say("tests marked gpu", done.stdout.strip().splitlines()[-1:])
    check("pytest -m gpu", done.returncode == 0, done.stdout[-600:] if done.returncode else "")
