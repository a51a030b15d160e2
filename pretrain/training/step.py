"""One training step, and what it needs: the optimiser, the processes' common gradient, compiled blocks.

Nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hear_m2d.pretrain.objectives.base import Objective, Outcome
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.training.metrics import clip_means, latent_meters, rankme
from hear_m2d.pretrain.training.schedules import decay_groups
from hear_m2d.utils.errors import WorkFailedError


@dataclass(frozen=True)
class Step:
    """What a step leaves behind, on the device.

    Attributes:
        loss: Mean over this process's clips.
        norm: The gradient's norm before clipping, of the whole batch.
        meters: Scalars to log, means over this process's clips.
    """

    loss: Tensor
    norm: Tensor
    meters: dict[str, Tensor]


class Trainer:
    """An objective with its optimiser, ready to take steps.

    Args:
        objective: On its device, with the weights' precision.
        recipe: What to train and how.
        device: Where.
        precision: ``float32``, ``bfloat16`` or ``float64``.
        at_once: Most clips in one forward pass; 0 takes the process's whole share of a batch.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        device: torch.device,
        precision: str,
        at_once: int = 0,
    ) -> None:
        self.recipe, self.objective, self.at_once = recipe, objective, at_once
        self.optimizer = make_optimizer(objective, recipe)
        self.accelerator = make_accelerator(device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        if device.type == "cpu" and precision == "bfloat16":
            unfuse_attention(objective)
        if recipe.compile:
            compile_blocks(objective)
        self._stepper: Any = None

    def step(self, batch: dict[str, Tensor], *, rate: float, watch: bool = False) -> Step:
        """Take one step: forward, backward, clip, update. The momentum update is the caller's.

        Args:
            batch: ``x``, standardised log-mel, (clips, 1, mels, frames); ``noise``, uniform,
                (clips, patches); and what the objective's offline target is made of.
            rate: Learning rate.
            watch: Add the meters of the encoder's output.

        Raises:
            WorkFailedError: The device has too little memory.
        """
        try:
            return self._step(batch, rate=rate, watch=watch)
        except torch.OutOfMemoryError as error:
            clips = min(self.at_once or len(batch["x"]), len(batch["x"]))
            raise WorkFailedError(
                f"{clips} clips at once do not fit into the memory of {batch['x'].device}: give a smaller "
                f"--at-once, such as {max(clips // 2, 1)}; the numbers stay the same"
            ) from error

    def _step(self, batch: dict[str, Tensor], *, rate: float, watch: bool) -> Step:
        if self._stepper is None:  # not before: the weights that a resumed run loads are those to be shared
            self._stepper, self._optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Not after the update: freed now, their memory serves the forward pass. Freed last, on a CPU,
        # it goes back to the system and is fetched again page by page: up to a fifth of a step.
        self._optimizer.zero_grad()
        clips = len(batch["x"])
        count = -(-clips // self.at_once) if self.at_once else 1
        split = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
        parts = [{name: split[name][index] for name in split} for index in range(count)]
        losses, meters, means = [], [], []
        extra = self.objective.encoder.config.class_token
        for index, part in enumerate(parts):
            share = len(part["x"]) / clips
            whole = index == len(parts) - 1
            with nullcontext() if whole else self.accelerator.no_sync(self._stepper):
                outcome = self._forward(part)
                self.accelerator.backward(outcome.loss * share if share != 1 else outcome.loss)
            losses.append(outcome.loss.detach() * share)
            found = outcome.meters
            if watch:
                found = {**found, **latent_meters(outcome.latent, class_token=extra)}
                means.append(clip_means(outcome.latent, class_token=extra))
            meters.append({name: value.detach() * share for name, value in found.items()})
            del outcome  # its activations, before the next part makes its own
        norm = self.accelerator.clip_grad_norm_(self._stepper.parameters(), self.recipe.clip_grad or math.inf)
        self._optimizer.step()
        summed = {name: torch.stack([part[name] for part in meters]).sum() for name in meters[0]}
        if watch:  # of all processes' clips
            summed["rankme"] = rankme(self.accelerator.gather(torch.cat(means)))
        return Step(loss=torch.stack(losses).sum(), norm=norm, meters=summed)

    def _forward(self, part: dict[str, Tensor]) -> Outcome:
        with self.autocast:
            # Outside of the synchronised module: a teacher is no part of what is trained.
            with torch.no_grad():
                target = self.objective.offline_target(part)
            outcome: Outcome = self._stepper(part["x"], part["noise"], target)
        return outcome


def make_accelerator(device: torch.device) -> Accelerator:
    """Return an accelerator for this process's device."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the last run's settings otherwise
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the step's own autocast: accelerate's would copy every output to float32
        # The buffers are constants.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )


def make_optimizer(objective: Objective, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's AdamW, fused."""
    groups = decay_groups(objective, recipe.weight_decay)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)


def unfuse_attention(objective: Objective) -> None:
    """Have the trained blocks compute their attention as matrix products.

    The backward pass of torch's fused attention in bfloat16 takes five to six times as long on a CPU with AMX
    (torch 2.11); a network that is not trained keeps it, since its forward pass is the faster one.
    """
    for module in objective.modules():
        fused = getattr(module, "fused_attn", None)
        if fused and all(parameter.requires_grad for parameter in module.parameters()):
            module.fused_attn = False  # type: ignore[assignment]  # timm's own switch


def compile_blocks(objective: Objective) -> None:
    """Have torch compile the transformer blocks on their first call.

    Block by block, for fixed shapes: what is compiled for the first of a network serves its others, and every
    step after the first finds it done.
    """
    for name, module in objective.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("blocks"):
            for block in module:
                block.compile(dynamic=False)
