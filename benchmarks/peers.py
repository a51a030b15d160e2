"""Our base model compared with other models: clips per second and memory, as ratios.

All with random weights, on the same audio, each as its own package runs it, front end included. Every system
runs in its own process. Rounds alternate, so that other work on the machine affects all systems equally.

python benchmarks/peers.py --batch 8 --seconds 10 --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from machine import describe_machine, peak_memory, seconds_of

from hear_m2d.utils.device import pick_device

Embed = Callable[[], object]
RATE = 16000


def clips(batch: int, seconds: float, rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the same noise-and-tones at any rate, (batch, samples)."""
    time = np.arange(int(seconds * rate)) / rate
    chance = np.random.default_rng(0)
    tones = [np.sin(2 * np.pi * chance.uniform(80, 4000, (4, 1)) * time).mean(0) for _ in range(batch)]
    return (0.3 * np.stack(tones)).astype(np.float32)


def ours(batch: int, seconds: float, device: torch.device, dtype: str = "float32") -> Embed:
    """hear-m2d, base size, 80x608 input, 16x16 patches: scene embeddings."""
    import hear_m2d
    from hear_m2d.model.config import ModelConfig, Options

    model = hear_m2d.HearModel(ModelConfig(), Options(dtype=dtype)).eval()
    model.encoder.to(getattr(torch, dtype))
    model.to(device)
    audio = torch.from_numpy(clips(batch, seconds, RATE)).to(device)
    return lambda: hear_m2d.get_scene_embeddings(audio, model)


def ours_bfloat16(batch: int, seconds: float, device: torch.device) -> Embed:
    """The same in bfloat16."""
    return ours(batch, seconds, device, "bfloat16")


def ast(batch: int, seconds: float, device: torch.device) -> Embed:
    """Audio Spectrogram Transformer of transformers, base size, with its own feature extractor."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    frames = int(seconds * 100) + 24  # its published 1024 for 10 s
    model = ASTModel(ASTConfig(max_length=frames)).eval().to(device)
    extractor = ASTFeatureExtractor(max_length=frames)
    audio = list(clips(batch, seconds, RATE))

    def embed() -> object:
        inputs = extractor(audio, sampling_rate=RATE, return_tensors="pt").to(device)
        return model(**inputs).pooler_output

    return embed


def passt(batch: int, seconds: float, device: torch.device) -> Embed:
    """PaSST of hear21passt, the network of its HEAR submission, at its own 32 kHz."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its layers
        from hear21passt.base import get_scene_embeddings
        from hear21passt.models.passt import get_model
        from hear21passt.models.preprocess import AugmentMelSTFT
        from hear21passt.wrapper import PasstBasicWrapper

        mel = AugmentMelSTFT(
            n_mels=128, sr=32000, win_length=800, hopsize=320, n_fft=1024, freqm=48, timem=192, htk=False,
            fmin=0.0, fmax=None, norm=1, fmin_aug_range=10, fmax_aug_range=2000,
        )  # fmt: skip
        net = get_model(arch="passt_s_swa_p16_128_ap476", pretrained=False)
        model = PasstBasicWrapper(mel=mel, net=net, mode="all").eval().to(device)
    audio = torch.from_numpy(clips(batch, seconds, 32000)).to(device)
    return lambda: get_scene_embeddings(audio, model)


def wav2vec2(batch: int, seconds: float, device: torch.device) -> Embed:
    """The wav2vec 2.0 of transformers, base size: mean of its last hidden states."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = Wav2Vec2Model(Wav2Vec2Config()).eval().to(device)
    audio = torch.from_numpy(clips(batch, seconds, RATE)).to(device)
    return lambda: model(audio).last_hidden_state.mean(1)


SYSTEMS: dict[str, tuple[Callable[..., Embed], str]] = {
    "hear-m2d base": (ours, "hear_m2d"),
    "hear-m2d base, bfloat16": (ours_bfloat16, "hear_m2d"),
    "AST base (transformers)": (ast, "transformers"),
    "PaSST (hear21passt)": (passt, "hear21passt"),
    "wav2vec 2.0 base (transformers)": (wav2vec2, "transformers"),
}


def serve(name: str, pipe: Connection, batch: int, seconds: float, device_name: str) -> None:
    """Run one system in this process: for each message, embed the batch once and return the seconds."""
    device = pick_device(device_name)
    embed = SYSTEMS[name][0](batch, seconds, device)
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        embed()
        pipe.send("ready")
        while pipe.recv() == "go":
            pipe.send(seconds_of(embed, device))
        pipe.send(peak_memory(device))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    missing = {package for _, package in SYSTEMS.values() if importlib.util.find_spec(package) is None}
    if missing:
        sys.exit(f"not installed: {', '.join(sorted(missing))}. Type: make bench-peers")

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for name in SYSTEMS:
        pipes[name], theirs = context.Pipe()
        arguments = (name, theirs, options.batch, options.seconds, options.device)
        workers.append(context.Process(target=serve, args=arguments, daemon=True))
        workers[-1].start()
        theirs.close()
        pipes[name].recv()  # one at a time: building also takes time
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send("go")
            seconds[name].append(pipe.recv())
    print(f"{describe_machine(pick_device(options.device))}")
    print(f"{options.batch} clips of {options.seconds} s, {options.rounds} rounds")
    print("| | clips/s | hear-m2d is so many times as fast | peak MiB | times our memory |")
    print("|---|---|---|---|---|")
    peaks: dict[str, float] = {}
    first = next(iter(SYSTEMS))
    for name, pipe in pipes.items():
        pipe.send("stop")
        peaks[name] = pipe.recv()
        ratios = [theirs / our for theirs, our in zip(seconds[name], seconds[first], strict=True)]
        print(
            f"| {name} | {options.batch / statistics.median(seconds[name]):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {peaks[name]:.0f} | {peaks[name] / peaks[first]:.2f} |"
        )


if __name__ == "__main__":
    main()
