"""Audio hours per minute of `hear-m2d embed`, and the share of the time that the model waits for data.

python benchmarks/embed_files.py                       # generated audio: 5 minutes in 30 files
python benchmarks/embed_files.py --audio FOLDER --clips 200
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import describe_machine

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.embed.embedder import ModelSpec
from hear_m2d.embed.inputs import Inputs, collect_inputs
from hear_m2d.embed.run import embed_files
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.encoder import SIZES, EncoderConfig
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.device import pick_device

KINDS = (("wav", 16000), ("flac", 44100), ("ogg", 48000))  # common rates: speech, music, field recordings

HEADER = """\
| network | dtype | workers | format | audio hours per minute | times real time | model waits for data |
|---|---|---|---|---|---|---|"""


def make_audio(folder: Path, *, clips: int, seconds: float) -> None:
    """Write pink-ish noise as WAV, FLAC and Ogg, in turn, at three rates."""
    generator = np.random.default_rng(0)
    for index in range(clips):
        suffix, rate = KINDS[index % len(KINDS)]
        noise = generator.standard_normal(int(rate * seconds))
        smooth = np.convolve(noise, np.ones(8) / 8, mode="same")
        soundfile.write(folder / f"{index:04d}.{suffix}", 0.3 * smooth, rate)


def make_checkpoint(path: Path, size: str, frames: int) -> None:
    """Write an untrained network, which is as fast as a trained one."""
    width, depth, heads = SIZES[size]
    config = EncoderConfig(
        input_size=(80, frames), patch_size=(16, 16), width=width, depth=depth, heads=heads
    )
    save_checkpoint(path, HearModel(ModelConfig(encoder=config)))


def measure(inputs: Inputs, spec: ModelSpec, out: Path, *, output_format: str, workers: int) -> str:
    """Embed everything once and return the row."""
    summary = embed_files(inputs, spec, out, output_format=output_format, workers=workers)
    speed = summary.audio_s / summary.seconds
    return (
        f"| {workers} | {output_format} | {summary.hours_per_minute:.2f} | {speed:.0f} "
        f"| {100 * summary.waiting_share:.0f} % |"
    )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--audio", type=Path, help="a folder of audio; by default some is made")
    parser.add_argument("--clips", type=int, help="only so many of its files, evenly spread")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the files that are made")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "base"])
    parser.add_argument("--frames", type=int, default=608)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--format", nargs="+", choices=["npy", "parquet"], default=["npy"])
    parser.add_argument("--what", choices=["scene", "timestamps", "both"], default="scene")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if options.audio is None:
            options.audio = place / "audio"
            options.audio.mkdir()
            make_audio(options.audio, clips=options.clips or 30, seconds=options.seconds)
        found = collect_inputs([options.audio])
        if options.clips and options.clips < len(found.clips):
            chosen = np.linspace(0, len(found.clips) - 1, options.clips).astype(int)
            found = Inputs(found.root, tuple(found.clips[i] for i in chosen), 0)
        print(f"{describe_machine(pick_device(options.device))}; {len(found.clips)} files, {options.what}")
        print(HEADER)
        for size in options.size:
            checkpoint = place / f"{size}.safetensors"
            make_checkpoint(checkpoint, size, options.frames)
            for dtype in options.dtype:
                spec = ModelSpec(str(checkpoint), options.what, {"dtype": dtype}, options.device)
                for output_format in options.format:
                    for workers in options.workers:
                        out = place / f"{size}-{dtype}-{workers}.{output_format}"
                        row = measure(found, spec, out, output_format=output_format, workers=workers)
                        print(f"| {size} | {dtype} {row}", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
