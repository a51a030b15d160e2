"""Learning rate, momentum and weight decay: closed forms of the step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from hear_m2d.pretrain.recipe import Recipe


def cosine_rate(now: float, *, peak: float, warmup: float, total: float, minimum: float = 0.0) -> float:
    """Return the learning rate: linear warm-up from exactly 0, then half a cosine down to ``minimum``.

    Args:
        now: Where the run is, in steps or epochs (fractions allowed).
        peak: Rate at the end of the warm-up.
        warmup: Length of the warm-up, in the same unit.
        total: Length of the run, in the same unit.
        minimum: Rate at the end.
    """
    if now < warmup:
        return peak * now / warmup
    progress = (now - warmup) / (total - warmup) if total > warmup else 1.0
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step of a run of that many steps."""
    peak = recipe.learning_rate
    if steps == 1:  # a rate of 0 would train nothing
        return peak
    warmup, minimum = recipe.optimizer.warmup * steps, recipe.optimizer.min_lr
    return cosine_rate(step, peak=peak, warmup=warmup, total=steps, minimum=minimum)


def momentum_decay(step: int, *, total: int, start: float, end: float) -> float:
    """Return the momentum decay of a step: linear from ``start`` at step 0 to ``end`` at the last step."""
    return end if total <= 1 else start + (end - start) * step / (total - 1)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: vectors and biases do not decay; class and mask token do."""
    learned = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in learned if p.ndim <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in learned if not (p.ndim <= 1 or name.endswith(".bias"))]
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
