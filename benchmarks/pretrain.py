"""Speed of a training step: clips per second, times real time, peak memory, share of the matrix rate.

    python benchmarks/pretrain.py --objective m2d --size base --batch 16
    python benchmarks/pretrain.py --recipe laptop_msm_mae --compile

Counted: forward (online and, for M2D, target) plus twice the online forward for the gradients. Steps of
this package and of a plain eager loop are timed in turns; the ratio is the last column.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable

import torch
from machine import (
    HEADER,
    Spread,
    arguments,
    describe_machine,
    measure,
    row,
    seconds_of,
)

from hear_m2d.model.encoder import SIZES, EncoderConfig
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.recipe import Recipe, load_recipe
from hear_m2d.pretrain.training.estimate import operations_per_clip
from hear_m2d.pretrain.training.schedules import decay_groups
from hear_m2d.pretrain.training.step import Trainer
from hear_m2d.utils.device import pick_device


def main() -> None:
    """Print one table."""
    parser = arguments(__doc__, batch=16)
    parser.add_argument("--objective", choices=["m2d", "msm_mae"], default="m2d")
    parser.add_argument("--mask-ratio", type=float, default=0.7)
    parser.add_argument("--recipe", help="a recipe's sizes and batch, in place of those options")
    parser.add_argument("--compile", action="store_true", help="have torch compile the blocks")
    options = parser.parse_args()

    device = pick_device(options.device)
    recipe = load_recipe(options.recipe) if options.recipe else recipe_of(options)
    recipe = dataclasses.replace(recipe, compile=options.compile)
    frames, clips = recipe.encoder.input_size[1], recipe.batch_size
    batch = {
        "x": torch.randn(clips, 1, 80, frames, device=device),
        "noise": mask_noise(0, 0, clips, math.prod(recipe.encoder.grid)).to(device),
    }
    print(f"{describe_machine(device)}")
    print(
        f"{options.recipe or f'{options.objective} {options.size}'}, 80x{frames}, "
        f"ratio {recipe.mask_ratio}, batch {clips}{', compiled' if options.compile else ''}"
    )
    print(
        *(line + end for line, end in zip(HEADER.splitlines(), (" plain / ours |", "---|"), strict=True)),
        sep="\n",
    )
    for dtype in options.dtype:
        ours = our_step(recipe, batch, dtype, device)
        found = measure(
            ours,
            operations=clips * operations_per_clip(recipe),
            pairs=options.pairs,
            dtype=getattr(torch, dtype),
            device=device,
        )
        plain = plain_step(recipe, batch, dtype, device)
        plain()
        ratios = [seconds_of(plain, device) / seconds_of(ours, device) for _ in range(options.pairs)]
        print(f"{row(dtype, found, batch=clips, clip_s=frames / 100)} {Spread.of(ratios):.2f} |")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return a recipe of a published size with the published decoder or predictor."""
    width, depth, heads = SIZES[options.size]
    high, wide = map(int, options.patch.split("x"))
    decoder = (512, 8, 16) if options.objective == "m2d" else (384, 4, 6)
    return Recipe(
        objective=options.objective,
        decoder=DecoderConfig(width=decoder[0], depth=decoder[1], heads=decoder[2]),
        encoder=EncoderConfig(
            width=width, depth=depth, heads=heads, input_size=(80, options.frames), patch_size=(high, wide)
        ),
        mask_ratio=options.mask_ratio,
        norm_pix_loss=options.objective == "m2d",
        batch_size=options.batch,
        steps=1,
    )


def our_step(
    recipe: Recipe, batch: dict[str, torch.Tensor], dtype: str, device: torch.device
) -> Callable[[], None]:
    """Return a step of the training loop."""
    objective = build_objective(recipe).to(device)
    trainer = Trainer(objective, recipe, device=device, precision=dtype)

    def step() -> None:
        trainer.step(batch, rate=recipe.learning_rate)
        objective.momentum_update(0.99995)

    return step


def plain_step(
    recipe: Recipe, batch: dict[str, torch.Tensor], dtype: str, device: torch.device
) -> Callable[[], None]:
    """Return a step of the same objective in a plain loop: one tensor after another, nothing fused."""
    objective = build_objective(recipe).to(device)
    groups = decay_groups(objective, recipe.optimizer.weight_decay)
    betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, foreach=False)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = objective(batch["x"], batch["noise"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            objective.parameters(), recipe.optimizer.clip_grad or math.inf, foreach=False
        )
        optimizer.step()
        if recipe.objective == "m2d":
            with torch.no_grad():
                for name, target in objective.target.named_parameters():
                    online = objective.encoder.get_parameter(name)
                    target.mul_(0.99995).add_(online, alpha=1 - 0.99995)

    return step


if __name__ == "__main__":
    main()
