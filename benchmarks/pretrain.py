"""Speed of a training step: clips per second, times real time, peak memory, share of the matrix rate.

    python benchmarks/pretrain.py --objective m2d --size base --batch 16

Counted: forward (online and, for M2D, target) plus twice the online forward for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from machine import HEADER, arguments, describe_machine, measure, row

from hear_m2d.device import pick_device
from hear_m2d.encoder import SIZES
from hear_m2d.pretrain.build import build_objective
from hear_m2d.pretrain.objective import Objective
from hear_m2d.pretrain.operations import operations_per_clip
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.train import make_accelerator, make_optimizer, mask_noise, training_step


def main() -> None:
    """Print one table."""
    parser = arguments(__doc__, batch=16)
    parser.add_argument("--objective", choices=["m2d", "msm_mae"], default="m2d")
    parser.add_argument("--mask-ratio", type=float, default=0.7)
    options = parser.parse_args()

    device = pick_device(options.device)
    width, depth, heads = SIZES[options.size]
    high, wide = map(int, options.patch.split("x"))
    decoder = (512, 8, 16) if options.objective == "m2d" else (384, 4, 6)
    recipe = Recipe(
        objective=options.objective,
        width=width,
        depth=depth,
        heads=heads,
        input_frames=options.frames,
        patch_size=(high, wide),
        mask_ratio=options.mask_ratio,
        decoder_width=decoder[0],
        decoder_depth=decoder[1],
        decoder_heads=decoder[2],
        norm_pix_loss=options.objective == "m2d",
        batch_size=options.batch,
        steps=1,
    )
    patches = math.prod(recipe.encoder_config.grid)
    print(f"{describe_machine(device)}")
    print(
        f"{options.objective} {options.size}, 80x{options.frames}, {options.patch}, "
        f"ratio {options.mask_ratio}, batch {options.batch}"
    )
    print(HEADER)
    for dtype in options.dtype:
        objective = build_objective(recipe).to(device)
        accelerator = make_accelerator(device, dtype)
        stepper, optimizer = accelerator.prepare(objective, make_optimizer(objective, recipe))
        x = torch.randn(options.batch, 1, 80, options.frames, device=device)
        noise = mask_noise(0, 0, options.batch, patches).to(device)
        step = partial(
            training_step, stepper, optimizer, accelerator, x=x, noise=noise, clip_grad=recipe.clip_grad
        )

        def work(step: Callable[[], object] = step, objective: Objective = objective) -> None:
            step()
            objective.momentum_update(0.99995)

        found = measure(
            work,
            operations=options.batch * operations_per_clip(recipe),
            pairs=options.pairs,
            dtype=getattr(torch, dtype),
            device=device,
        )
        print(row(dtype, found, batch=options.batch, clip_s=options.frames / 100))


if __name__ == "__main__":
    main()
