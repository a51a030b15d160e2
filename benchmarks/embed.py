"""Speed of embedding: clips per second, times real time, peak memory, share of the matrix rate.

Measures each precision (on a GPU also TF32; with ``--compile`` also compiled). Then compares each with
float32: the speedup, the share of the speedup that the matrix rates allow, the similarity of the embeddings.

python benchmarks/embed.py --size base --seconds 10 --batch 4
"""

from __future__ import annotations

import torch
from machine import HEADER, Measured, arguments, describe_machine, measure, row
from torch import Tensor

import hear_m2d
from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import SIZES, EncoderConfig, encoder_operations
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.device import pick_device


def operations_per_clip(model: HearModel, samples: int) -> float:
    """Count over the windows that the model cuts a clip into."""
    config = model.config.encoder
    patch = config.patch_size[1]
    frames = model.config.frontend.frames(samples)
    full, rest = divmod(frames, config.grid[1] * patch)
    count = full * encoder_operations(config, config.grid[1])
    return count + (encoder_operations(config, -(-rest // patch)) if rest else 0.0)


def random_model(config: EncoderConfig, dtype: str, *, compiled: bool, device: torch.device) -> HearModel:
    """Return a network of the same random weights in any precision."""
    torch.manual_seed(0)
    model = HearModel(ModelConfig(encoder=config), Options(dtype=dtype, compile=compiled)).eval()
    model.encoder.to(getattr(torch, dtype))
    return model.to(device)


def beside_first(label: str, found: Measured, first: Measured, scenes: Tensor, expected: Tensor) -> str:
    """Return a sentence that compares one variant with the first."""
    faster = first.seconds.median / found.seconds.median
    allowed = found.rate.median / first.rate.median
    alike = torch.nn.functional.cosine_similarity(scenes, expected).min().item()
    return (
        f"{label}: {faster:.2f} times as fast as the first row, {faster / allowed:.2f} of the {allowed:.2f} "
        f"that the matrix rates allow; cosine similarity at least {alike:.5f}"
    )


def main() -> None:
    """Print one table, and a sentence that compares each row with the first."""
    parser = arguments(__doc__, batch=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--compile", action="store_true", help="time each compiled too")
    options = parser.parse_args()

    device = pick_device(options.device)
    width, depth, heads = SIZES[options.size]
    high, wide = map(int, options.patch.split("x"))
    config = EncoderConfig(
        input_size=(80, options.frames), patch_size=(high, wide), width=width, depth=depth, heads=heads
    )
    precisions = [(name, name, "highest") for name in options.dtype]
    if device.type == "cuda" and "float32" in options.dtype:
        precisions.insert(options.dtype.index("float32") + 1, ("TF32", "float32", "high"))
    print(f"{describe_machine(device)}")
    print(
        f"{options.size}, 80x{options.frames}, {options.patch}, {options.batch} clips of {options.seconds} s"
    )
    print(HEADER)
    first: tuple[Measured, Tensor] | None = None
    sentences = []
    for name, dtype, products in precisions:
        torch.set_float32_matmul_precision(products)  # of the model and of the matrix rate
        for compiled in (False, True) if options.compile else (False,):
            label = f"{name}, compiled" if compiled else name
            model = random_model(config, dtype, compiled=compiled, device=device)
            audio = torch.rand(options.batch, int(options.seconds * model.sample_rate), device=device) * 2 - 1
            found = measure(
                lambda model=model, audio=audio: hear_m2d.get_scene_embeddings(audio, model),
                operations=options.batch * operations_per_clip(model, audio.shape[1]),
                pairs=options.pairs,
                dtype=getattr(torch, dtype),
                device=device,
            )
            print(row(label, found, batch=options.batch, clip_s=options.seconds))
            scenes = hear_m2d.get_scene_embeddings(audio, model)
            if first is None:
                first = found, scenes
            else:
                sentences.append(beside_first(label, found, first[0], scenes, first[1]))
    print("", *sentences, sep="\n")


if __name__ == "__main__":
    main()
