"""One training step, with the optimizer, gradients averaged over processes, and compiled blocks.

Nothing in a step waits for the device, except the effective rank in steps that are logged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hear_m2d.model.encoder import attention_kernels
from hear_m2d.pretrain.objectives.base import Objective, ObjectiveOutput
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.estimate import fitting_clips
from hear_m2d.pretrain.training.metrics import clip_means, latent_meters, rankme, token_meters
from hear_m2d.pretrain.training.schedules import decay_groups
from hear_m2d.utils.errors import InputError, WorkFailedError

COMPILED_VARIANTS = 64  # one for each network and number of clips; torch's default of 8 falls back to eager


@dataclass(frozen=True)
class Step:
    """The result of a step, on the device.

    Attributes:
        loss: Mean over this process's clips.
        norm: The gradient's norm before clipping, of the whole batch.
        meters: Scalars to log, means over this process's clips.
    """

    loss: Tensor
    norm: Tensor
    meters: dict[str, Tensor]


class Trainer:
    """An objective with its optimizer, ready to take steps.

    Args:
        objective: The network, on its device and in the precision of its weights.
        recipe: What to train and how.
        device: Where to train.
        precision: ``float32``, ``bfloat16`` or ``float64``.
        micro_batch_size: Most clips in one forward pass; 0: on a GPU as many as fit into its memory, on a CPU
            the process's whole share of a batch.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        device: torch.device,
        precision: str,
        micro_batch_size: int = 0,
    ) -> None:
        self.recipe, self.objective = recipe, objective
        self.optimizer = make_optimizer(objective, recipe)
        self.accelerator = make_accelerator(device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self.device = device
        on_gpu = device.type == "cuda"
        if not micro_batch_size and on_gpu:
            micro_batch_size = fitting_clips(recipe, precision=precision, device=device)
        self.micro_batch_size = micro_batch_size
        if device.type == "cpu" and precision == "bfloat16":
            unfuse_attention(objective)
        if recipe.compile is True or (recipe.compile == "auto" and on_gpu):
            compile_blocks(objective)
        self._stepper: Any = None

    def step(self, batch: dict[str, Tensor], *, rate: float, with_metrics: bool = False) -> Step:
        """Take one step: forward, backward, clip, update. The momentum update is the caller's.

        Args:
            batch: ``x``, standardized log-mel, (clips, 1, mels, frames); ``noise``, uniform,
                (clips, patches); and what the objective's offline target is made of.
            rate: Learning rate.
            with_metrics: Add the meters of the encoder's output and of the target's tokens.

        Raises:
            InputError: The batch must be cut into parts, and the objective's loss is that of a whole batch.
            WorkFailedError: The device has too little memory.
        """
        try:
            return self._step(batch, rate=rate, with_metrics=with_metrics)
        except torch.OutOfMemoryError as error:
            clips = part_size(len(batch["x"]), self.micro_batch_size)
            raise WorkFailedError(
                f"{clips} clips at once do not fit into the memory of {batch['x'].device}: give a smaller "
                f"--micro-batch-size, such as {max(clips // 2, 1)}; the numbers stay the same"
            ) from error

    def _step(self, batch: dict[str, Tensor], *, rate: float, with_metrics: bool) -> Step:
        if self._stepper is None:  # not earlier: a resumed run first loads its weights, which are then shared
            self._stepper, self._optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Not after the update: freed now, their memory serves the forward pass. Freed last, on a CPU,
        # it goes back to the system and is fetched again page by page: up to a fifth of a step.
        self._optimizer.zero_grad()
        clips = len(batch["x"])
        count = -(-clips // part_size(clips, self.micro_batch_size))
        if count > 1 and self.objective.needs_whole_batch:
            raise InputError(
                f"batch_norm_target = true needs the {clips} clips of a step in one forward pass, not in "
                f"{count}: give --micro-batch-size {clips}, or a smaller --batch-size"
            )
        split = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
        parts = [{name: split[name][index] for name in split} for index in range(count)]
        losses, meters, means = [], [], []
        extra = self.objective.encoder.config.class_token
        for index, part in enumerate(parts):
            share = len(part["x"]) / clips
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self._stepper):
                output = self._forward(part)
                self.accelerator.backward(output.loss * share if share != 1 else output.loss)
            losses.append(output.loss.detach() * share)
            scalars = output.meters
            if with_metrics:
                if self.recipe.objective == "m2d":
                    scalars = {**scalars, **token_meters(output.target)}
                scalars = {**scalars, **latent_meters(output.latent, class_token=extra)}
                means.append(clip_means(output.latent, class_token=extra))
            meters.append({name: value.detach() * share for name, value in scalars.items()})
            del output  # this frees its activations before the next part
        limit = self.recipe.optimizer.clip_grad or math.inf
        norm = self.accelerator.clip_grad_norm_(self._stepper.parameters(), limit)
        self._optimizer.step()
        summed = {name: torch.stack([part[name] for part in meters]).sum() for name in meters[0]}
        if with_metrics:  # of all processes' clips
            summed["rankme"] = rankme(self.accelerator.gather(torch.cat(means)))
        return Step(loss=torch.stack(losses).sum(), norm=norm, meters=summed)

    def _forward(self, part: dict[str, Tensor]) -> ObjectiveOutput:
        with self.autocast, attention_kernels(self.device):
            # Outside the synchronized module, because a teacher is not trained.
            with torch.no_grad():
                target = self.objective.offline_target(part)
            output: ObjectiveOutput = self._stepper(part["x"], part["noise"], target)
        return output


def part_size(clips: int, limit: int) -> int:
    """Return the size of a forward pass: the largest equal part of ``clips`` within ``limit`` (0: no limit).

    A share with no divisor near the limit is cut into parts that differ by one clip.
    """
    if not limit or clips <= limit:
        return clips
    divisor = next(size for size in range(limit, 0, -1) if clips % size == 0)
    return divisor if divisor > limit // 2 else limit


@contextmanager
def without_accelerate_settings() -> Iterator[None]:
    """Hide accelerate's environment variables, which would change what is computed, and where."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    if os.environ.get("WORLD_SIZE", "1") == "1" and "LOCAL_RANK" in os.environ:
        hidden["LOCAL_RANK"] = os.environ.pop("LOCAL_RANK")  # for one process, accelerate would make a group
    try:
        yield
    finally:
        os.environ.update(hidden)


def make_accelerator(device: torch.device) -> Accelerator:
    """Return an accelerator for this process's device."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    AcceleratorState._reset_state(reset_partial_state=True)  # otherwise it keeps the settings of the last run
    with without_accelerate_settings():
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",  # the step's own autocast: accelerate's would copy every output to float32
            gradient_accumulation_steps=1,
            # The buffers are constants.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )


def make_optimizer(objective: Objective, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's AdamW, fused."""
    groups = decay_groups(objective, recipe.optimizer.weight_decay)
    betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)


def unfuse_attention(objective: Objective) -> None:
    """Compute the attention of the trained blocks as matrix products.

    The backward pass of torch's fused attention in bfloat16 takes five to six times as long on a CPU with AMX
    (torch 2.11); a network that is not trained keeps it, since its forward pass is the faster one.
    """
    for module in objective.modules():
        fused = getattr(module, "fused_attn", None)
        if fused and all(parameter.requires_grad for parameter in module.parameters()):
            module.fused_attn = False  # type: ignore[assignment]  # timm's own switch


def compile_blocks(objective: Objective) -> None:
    """Compile the transformer blocks with torch on their first call.

    Each block is compiled for fixed shapes: the code compiled for the first block of a network is also used
    for its other blocks, and in every later step.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for name, module in objective.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("blocks"):
            for block in module:
                block.compile(dynamic=False)
