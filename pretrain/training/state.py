"""The training state on disk: everything that the next step depends on, in files that are written atomically.

state-<step>.safetensors holds weights, optimizer moments and the step; randomness is a function of the step.
A state is written before an older one is removed, so that a full disk or a kill at any moment loses nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hear_m2d.checkpoint.format import read_tensors, write_tensors
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.utils.errors import InputError, WorkFailedError

logger = logging.getLogger(__name__)

STATE_KEY = "hear_m2d_state"


@dataclass(frozen=True)
class States:
    """The states of one run."""

    folder: Path
    keep_last: int = 2  # how many of the newest states to keep
    keep_every: int = 0  # states at multiples of this number of steps are never removed; 0: all may be

    def path(self, step: int) -> Path:
        """Return the file of a step's state."""
        return self.folder / f"state-{step}.safetensors"

    def steps(self) -> list[int]:
        """Return the steps that have a saved state, in order."""
        matches = (re.fullmatch(r"state-(\d+)\.safetensors", p.name) for p in self.folder.glob("state-*"))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, objective: Objective, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write the state after ``step`` steps, then remove older states that need not be kept.

        Raises:
            WorkFailedError: It cannot be written, or is not finite; earlier states are kept.
        """
        tensors = {f"model.{name}": value for name, value in objective.state_dict().items()}
        for name, parameter in objective.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        if not bool(torch.stack([value.isfinite().all().cpu() for value in tensors.values()]).all()):
            raise WorkFailedError(
                f"the weights are no longer finite at step {step}: the run stopped; {self.kept()}. "
                f"Try a smaller optimizer.base_lr"
            )
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        try:
            write_tensors(self.path(step), tensors, {STATE_KEY: {"step": step}})
        except OSError as error:
            raise WorkFailedError(
                f"the state of step {step} cannot be written to {self.path(step)} ({error.strerror}): "
                f"{self.kept()}. Make room, then the same command continues"
            ) from error
        for old in [known for known in self.steps() if known <= step][: -self.keep_last]:
            if not (self.keep_every and old % self.keep_every == 0):
                try:
                    self.path(old).unlink(missing_ok=True)
                except OSError as error:  # a state that stays only takes disk space
                    logger.warning("%s cannot be removed: %s", self.path(old), error)

    def load(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        step: int,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Restore what :meth:`save` wrote; ``tensors`` are those of the file, if it was read already.

        Raises an InputError for a file that is damaged, or of a network of other sizes.
        """
        if tensors is None:
            tensors, _ = read_tensors(self.path(step), STATE_KEY)
        try:
            objective.load_state_dict(_below("model.", tensors))
        except RuntimeError as error:
            raise InputError(
                f"{self.path(step)} is of a network of other sizes, which cannot be continued with these: "
                f"give another --out"
            ) from error
        for name, parameter in objective.named_parameters():
            if moments := _below(f"optimizer.{name}.", tensors):
                # The number of steps too: the fused AdamW has it on the device.
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) for key, value in moments.items()
                }

    def newest(self) -> tuple[int, dict[str, Tensor]]:
        """Return the newest state that can be read: its step and its tensors; step 0 if none was written.

        Raises an InputError if there are states, but none can be read.
        """
        first_error: ValueError | None = None
        for step in reversed(self.steps()):
            try:
                return step, read_tensors(self.path(step), STATE_KEY)[0]
            except ValueError as error:
                logger.warning("%s: using the state before it", error)
                first_error = first_error or error
        if first_error is not None:
            raise InputError(f"{first_error}. Remove it to begin the run anew") from first_error
        return 0, {}

    def kept(self) -> str:
        """Return a sentence about the available states."""
        steps = self.steps()
        return f"{self.path(steps[-1])} keeps the last good state" if steps else "no state was saved yet"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
