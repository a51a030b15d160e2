"""The cost of a recipe before training: parameters, operations, steps, memory, time.

Counts are exact; memory and time are estimates, whose assumptions are printed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hear_m2d.checkpoint.resolve import read_weights
from hear_m2d.model.encoder import EncoderConfig, block_operations, encoder_operations
from hear_m2d.pretrain.objectives.build import build_objective
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.pretrain.objectives.teacher import check_teacher
from hear_m2d.pretrain.recipe import TABLES, OfflineConfig, Recipe, replace_fields
from hear_m2d.pretrain.training.metrics import DTYPES
from hear_m2d.utils.device import free_memory, native_bfloat16
from hear_m2d.utils.flops import matrix_rate

# The share of the matrix rate that a step is assumed to reach: on the CPU about the share measured on two
# cores (docs/performance.md), on a GPU the goal of this project.
ASSUMED_SHARE = {"cpu": 0.65, "cuda": 0.40}
MEMORY_SHARE = 0.8  # share of a GPU's free memory for a step: the estimate has no temporary buffers
# Sizes of the matrices whose products measure a machine's rate well enough for an estimate.
QUICK_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


@dataclass(frozen=True)
class Plan:
    """The cost of a run."""

    encoder: int  # learned parameters, without positions
    predictor: int  # parameters of the predictor or decoder, and of the offline predictor
    target: int  # parameters of M2D's target network, which are averaged, not learned
    operations: float  # of one clip's step
    clips: int | None  # number of clips in the set, if known
    steps: int | None  # of the run; None where that follows from an unknown set
    state_bytes: float  # weights, gradients, moments, target network, copies in the network's precision
    clip_bytes: float  # additional bytes for each clip of the batch
    precision: str

    def hours(self, rate: float, batch: int) -> float | None:
        """Return the hours that the steps take at a number of operations per second."""
        return None if self.steps is None else self.steps * batch * self.operations / rate / 3600


def run_precision(recipe: Recipe, device: torch.device) -> str:
    """Return the precision of a recipe on a device; ``auto`` becomes bfloat16 or float32."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bfloat16" if native_bfloat16(device) else "float32"


def make_plan(
    recipe: Recipe,
    *,
    clips: int | None = None,
    device: torch.device | None = None,
    teacher: EncoderConfig | None = None,
) -> Plan:
    """Estimate the cost of a run of the recipe.

    ``clips`` is by default the number of the published run. The ``device`` (the CPU by default) decides which
    precision ``auto`` means. ``teacher`` has the sizes of M2D-X's teacher, if the recipe names none.

    Raises:
        InputError: A named teacher is not a checkpoint, or does not fit.
    """
    precision = run_precision(recipe, device or torch.device("cpu"))
    if recipe.offline.source != "teacher":
        teacher = None
    elif name := recipe.offline.teacher or recipe.init:
        teacher = read_weights(name).config.encoder
        check_teacher(recipe, teacher, name)
    if teacher is not None and not recipe.offline.features:
        recipe = replace_fields(recipe, {"offline.features": teacher.column_width})
    clips = clips or recipe.published.clips or None
    steps = recipe.steps
    if steps is None and clips is not None:
        steps = clips // recipe.batch_size * (recipe.epochs or 0)
    state, clip = memory(recipe, precision=precision, teacher=teacher)
    operations = operations_per_clip(recipe, teacher)
    return Plan(*parameters(recipe), operations, clips, steps, state, clip, precision)


def parameters(recipe: Recipe) -> tuple[int, int, int]:
    """Return the parameters of encoder, predictor side and target network.

    An offline predictor is counted only if ``offline.features`` is known.
    """
    if recipe.offline.source and not recipe.offline.features:
        recipe = dataclasses.replace(recipe, offline=OfflineConfig())
    with torch.device("meta"):  # shapes without storage
        objective = build_objective(recipe)
    counts = {"encoder": 0, "target": 0, "predictor": 0}
    for name, parameter in objective.named_parameters():
        part = name.split(".")[0]
        counts[part if part in counts else "predictor"] += parameter.numel()
    return counts["encoder"], counts["predictor"], counts["target"]


def memory(recipe: Recipe, *, precision: str, teacher: EncoderConfig | None = None) -> tuple[float, float]:
    """Estimate the bytes of a training step: a constant part, and a part for each clip of the batch."""
    encoder, predictor, target = parameters(recipe)
    learned = encoder + predictor
    exact = 8 if precision == "float64" else 4
    value = 2 if precision == "bfloat16" else exact
    # Weights, gradients and two moments; the averaged network; in bfloat16 a copy of what is multiplied.
    state = exact * (4 * learned + target) + (value * (learned + target) if value < exact else 0)

    config = recipe.encoder
    patches, extra = math.prod(config.grid), int(config.class_token)
    visible = visible_count(patches, recipe.mask_ratio)
    masked = patches - visible
    # What a block keeps of a token for its backward pass: its input, both norms' outputs, q, k and v, the
    # attention's output, the sum after it (8 widths); the MLP's hidden features before and after GELU.
    clip = config.depth * (extra + visible) * config.width * value * (8 + 2 * config.mlp_ratio)
    clip += recipe.decoder.depth * (extra + patches) * recipe.decoder.width * value * (8 + 2 * 4.0)
    clip += (exact + value) * math.prod(config.input_size)  # the clip, and its patches
    clip += value * config.width * patches * 2  # tokens with positions, and those gathered
    # Predictions and targets: of M2D standardized and normed, of MSM-MAE their difference.
    features = 3 * config.width if recipe.objective == "m2d" else 2 * math.prod(config.patch_size)
    clip += exact * masked * features
    if recipe.offline.source:
        clip += exact * config.grid[1] * (2 * config.column_width + 3 * recipe.offline.features)
    if teacher is not None:
        state += 4 * (12 * teacher.width**2 * teacher.depth)
    return state, clip


def fitting_clips(recipe: Recipe, *, precision: str, device: torch.device) -> int:
    """Return how many clips one forward pass may have, so that a step takes 0.8 of a GPU's free memory."""
    free = free_memory(device)
    state, clip = memory(recipe, precision=precision)
    return recipe.batch_size if free is None else max(1, int((MEMORY_SHARE * free - state) / clip))


def operations_per_clip(recipe: Recipe, teacher: EncoderConfig | None = None) -> float:
    """Count the matrix products of one clip's step: the forward pass, and twice its trained part.

    A closed form: torch's FlopCounterMode gives the same numbers (a test), but takes seconds. What a
    ``teacher`` of that size computes is counted too.
    """
    encoder, decoder = recipe.encoder, recipe.decoder
    patches, pixels = math.prod(encoder.grid), math.prod(encoder.patch_size)
    visible = visible_count(patches, recipe.mask_ratio)
    masked = patches - visible
    width, extra = encoder.width, int(encoder.class_token)
    online: float = 2 * patches * pixels * width
    online += block_operations(width, extra + visible, depth=encoder.depth, mlp_ratio=encoder.mlp_ratio)
    online += 2 * (extra + visible) * width * decoder.width
    online += block_operations(decoder.width, extra + patches, depth=decoder.depth)
    online += 2 * masked * decoder.width * (width if recipe.objective == "m2d" else pixels)
    frozen = 0.0
    if recipe.objective == "m2d":
        seen = masked if recipe.target_input == "masked" else patches
        frozen += block_operations(width, extra + seen, depth=encoder.depth, mlp_ratio=encoder.mlp_ratio)
    if recipe.offline.source:
        online += 2 * encoder.grid[1] * encoder.column_width * recipe.offline.features
    if recipe.offline.source == "teacher" and teacher is not None:
        frozen += encoder_operations(teacher, -(-recipe.frames // teacher.patch_size[1]))
    return 3 * online + frozen


def describe_plan(
    recipe: Recipe, plan: Plan, device: torch.device, rate: float | None = None
) -> Iterator[str]:
    """Yield the lines of a dry run: the resolved recipe, then its cost.

    ``rate`` is the rate of the device's matrix products, operations per second; by default it is measured.
    """
    fields = dataclasses.asdict(recipe)
    tables = {name: fields.pop(name) for name in TABLES}
    yield from _toml_lines(fields)
    for name, table in tables.items():
        yield from ("", f"[{name}]", *_toml_lines(table))
    yield from ("", f"peak learning rate: {recipe.learning_rate:g}")
    part = "predictor" if recipe.objective == "m2d" else "decoder"
    learned = plan.encoder + plan.predictor
    yield f"learned parameters: {learned:,} (encoder {plan.encoder:,}, {part} {plan.predictor:,})"
    if plan.target:
        yield f"target network: {plan.target:,} parameters, averaged"
    if not recipe.offline.features and recipe.offline.source == "labels":
        yield "not counted: the offline predictor; --data says how many labels there are"
    elif (
        not recipe.offline.features and recipe.offline.source and not (recipe.offline.teacher or recipe.init)
    ):
        yield "not counted: the teacher and the offline predictor; name one by --init or offline.teacher"
    step = plan.operations * recipe.batch_size
    yield f"operations: {plan.operations / 1e9:.2f} GFLOP a clip, {step / 1e12:.4g} TFLOP a step"
    yield _length(recipe, plan)
    total = plan.state_bytes + plan.clip_bytes * recipe.batch_size
    yield (
        f"memory, estimated in {plan.precision}: {plan.state_bytes / 2**30:.2f} GiB and "
        f"{plan.clip_bytes / 2**20:.1f} MiB a clip: {total / 2**30:.1f} GiB for {recipe.batch_size} clips "
        f"on one device; --micro-batch-size N needs the memory of N clips"
    )
    origin = "given" if rate else "measured now"
    rate = rate or matrix_rate(DTYPES[plan.precision], device, QUICK_SIZES.get(device.type))
    share = ASSUMED_SHARE.get(device.type, ASSUMED_SHARE["cuda"])
    hours = plan.hours(rate * share, recipe.batch_size)
    yield (
        f"time, estimated at a share of {share:.2f} of {rate / 1e9:,.0f} GFLOP/s ({origin}, {device}): "
        f"{step / (rate * share):.3g} s a step{'' if hours is None else f', {_duration(hours)} in all'}"
    )


def _toml_lines(fields: dict[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            yield f"{name} = ["
            yield from (f"    {json.dumps(text, ensure_ascii=False)}," for text in value)
            yield "]"
        elif value is not None:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _length(recipe: Recipe, plan: Plan) -> str:
    if plan.steps is None:
        return f"steps: {recipe.epochs} epochs of clips // {recipe.batch_size}; --data says how many clips"
    line = f"steps: {plan.steps:,} of {recipe.batch_size:,} clips"
    if plan.clips is None:
        return line
    data = (
        f"{plan.clips:,} clips ({'as published' if plan.clips == recipe.published.clips else 'of the data'})"
    )
    if recipe.epochs is None:
        return f"{line}: {plan.steps * recipe.batch_size / plan.clips:.3g} passes over {data}"
    if not plan.steps:
        return f"{line}: {data} are fewer than one batch"
    whole = plan.clips // recipe.batch_size * recipe.batch_size
    some = f"{whole:,} of the " if whole != plan.clips else ""
    return f"{line}: {recipe.epochs} epochs of {some}{data}"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.2g} minutes"
    return f"{hours:.3g} hours" if hours < 48 else f"{hours / 24:.3g} days"
