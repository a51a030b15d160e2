"""Speed of embedding: clips per second, times real time, peak memory, share of the matrix rate.

python benchmarks/embed.py --size base --seconds 10 --batch 4
"""

from __future__ import annotations

import torch
from machine import HEADER, arguments, describe_machine, measure, row

import hear_m2d
from hear_m2d.config import ModelConfig, Options
from hear_m2d.device import pick_device
from hear_m2d.encoder import SIZES, EncoderConfig
from hear_m2d.model import HearModel
from hear_m2d.operations import encoder_operations


def operations_per_clip(model: HearModel, samples: int) -> float:
    """Count over the windows that the model cuts a clip into."""
    config = model.config.encoder
    patch = config.patch_size[1]
    frames = model.config.frontend.frames(samples)
    full, rest = divmod(frames, config.grid[1] * patch)
    count = full * encoder_operations(config, config.grid[1])
    return count + (encoder_operations(config, -(-rest // patch)) if rest else 0.0)


def main() -> None:
    """Print one table."""
    parser = arguments(__doc__, batch=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()

    device = pick_device(options.device)
    width, depth, heads = SIZES[options.size]
    high, wide = map(int, options.patch.split("x"))
    config = EncoderConfig(
        input_size=(80, options.frames), patch_size=(high, wide), width=width, depth=depth, heads=heads
    )
    print(f"{describe_machine(device)}")
    print(
        f"{options.size}, 80x{options.frames}, {options.patch}, {options.batch} clips of {options.seconds} s"
    )
    print(HEADER)
    for dtype in options.dtype:
        model = HearModel(ModelConfig(encoder=config), Options(dtype=dtype)).eval()
        model.encoder.to(getattr(torch, dtype))
        model.to(device)
        audio = torch.rand(options.batch, int(options.seconds * model.sample_rate), device=device) * 2 - 1
        found = measure(
            lambda model=model, audio=audio: hear_m2d.get_scene_embeddings(audio, model),
            operations=options.batch * operations_per_clip(model, audio.shape[1]),
            pairs=options.pairs,
            dtype=getattr(torch, dtype),
            device=device,
        )
        print(row(dtype, found, batch=options.batch, clip_s=options.seconds))


if __name__ == "__main__":
    main()
