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
    """The states of one run.

    Attributes:
        folder: The run's folder.
        keep_last: How many of the newest states to keep.
        keep_every: States at multiples of so many steps are kept for good; 0 keeps none of them.
    """

    folder: Path
    keep_last: int = 2
    keep_every: int = 0

    def path(self, step: int) -> Path:
        """Return the file of a step's state."""
        return self.folder / f"state-{step}.safetensors"

    def steps(self) -> list[int]:
        """Return the steps whose states are there, in order."""
        matches = (re.fullmatch(r"state-(\d+)\.safetensors", p.name) for p in self.folder.glob("state-*"))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, objective: Objective, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write the state after ``step`` steps, then remove those that are not to be kept.

        Raises:
            WorkFailedError: It cannot be written, or is not finite; the states that were there still are.
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
        self._remove_old(step)

    def load(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        step: int,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Restore :meth:`save`.

        Args:
            objective: Receives the weights.
            optimizer: Receives its moments.
            step: Of the state.
            tensors: Those of the file, where they were read already.

        Raises:
            InputError: The file is damaged, or of a network of other sizes.
        """
        if tensors is None:
            tensors, _ = read_tensors(self.path(step), STATE_KEY)
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        try:
            objective.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"{self.path(step)} is of a network of other sizes, which cannot be continued with these: "
                f"give another --out"
            ) from error
        for name, parameter in objective.named_parameters():
            prefix = f"optimizer.{name}."
            moments = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if moments:
                # The number of steps too: the fused AdamW has it on the device.
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) for key, value in moments.items()
                }

    def newest(self) -> tuple[int, dict[str, Tensor]]:
        """Return the newest state that can be read: its step and its tensors; 0 where none was written.

        Raises:
            ValueError: There are states, and none can be read.
        """
        error: ValueError | None = None
        for step in reversed(self.steps()):
            try:
                tensors, _ = read_tensors(self.path(step), STATE_KEY)
            except ValueError as damage:
                logger.warning("%s: going back to the state before it", damage)
                error = error or damage
            else:
                return step, tensors
        if error is not None:
            raise InputError(f"{error}. Remove it to begin the run anew") from error
        return 0, {}

    def kept(self) -> str:
        """Return a sentence about the available states."""
        steps = self.steps()
        return f"{self.path(steps[-1])} keeps the last good state" if steps else "no state was saved yet"

    def _remove_old(self, newest: int) -> None:
        old = [step for step in self.steps() if step <= newest][: -self.keep_last]
        for step in old:
            if not (self.keep_every and step % self.keep_every == 0):
                try:
                    self.path(step).unlink(missing_ok=True)
                except OSError as error:  # it only takes disk space
                    logger.warning("%s cannot be removed: %s", self.path(step), error)
