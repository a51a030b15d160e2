"""A run's folder: what is being trained, the training state, the log; safe to interrupt at any moment.

run.json                what this run is: recipe, data, steps
metrics.jsonl           one line per logged step
tensorboard/            the same, for TensorBoard
state.safetensors       weights, optimiser moments and step, to resume from
checkpoint.safetensors  the encoder, for load_model
objective.safetensors   the rest: predictor or decoder, target network
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hear_m2d.checkpoint import read_tensors, write_tensors
from hear_m2d.files import atomic_write_text, visible_names
from hear_m2d.pretrain.objective import Objective

STATE_KEY = "hear_m2d_state"
OBJECTIVE_KEY = "hear_m2d_objective"


class RunFolder:
    """The files of one run.

    Args:
        folder: Where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "run.json"
        self.metrics = folder / "metrics.jsonl"
        self.state = folder / "state.safetensors"
        self.checkpoint = folder / "checkpoint.safetensors"
        self.objective = folder / "objective.safetensors"

    def known(self) -> dict[str, Any] | None:
        """Return what ``run.json`` says, or None where no run began here.

        Raises:
            ValueError: The folder holds something else, or a damaged ``run.json``.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder for --out")
        if not self.record.exists():
            # The data is prepared before run.json is written.
            others = [name for name in visible_names(self.folder) if name != "data"]
            if others:
                raise ValueError(
                    f"{self.folder} holds files of something else ({others[0]}): give an empty --out"
                )
            return None
        try:
            record = json.loads(self.record.read_text())
        except ValueError as error:
            raise ValueError(f"{self.record} is damaged: {error}") from error
        if not isinstance(record, dict) or not {"recipe", "steps", "data"} <= record.keys():
            raise ValueError(f"{self.record} is not of a pretraining run: give an empty --out")
        return record

    def begin(self, record: dict[str, Any]) -> None:
        """Write ``run.json``, or check that the run here is the same.

        Raises:
            ValueError: Another run is here; the differing fields are named.
        """
        known = self.known()
        if known is None:
            atomic_write_text(self.record, json.dumps(record, indent=2) + "\n")
            return
        if different := differences(known, record):
            raise ValueError(
                f"{self.folder} holds another run: {'; '.join(different)}. "
                f"Give another --out, or the same settings"
            )

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop the lines after a step, which a resumed run writes again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # a line cut short when the process was killed
        atomic_write_text(self.metrics, "".join(kept))

    def save_state(self, objective: Objective, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write everything that the next step depends on; randomness is a function of the step."""
        tensors = {f"model.{name}": value for name, value in objective.state_dict().items()}
        for name, moments in _moments(objective, optimizer).items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_tensors(self.state, tensors, {STATE_KEY: {"step": step}})

    def load_state(self, objective: Objective, optimizer: torch.optim.Optimizer) -> int:
        """Restore :meth:`save_state` and return its step; 0 where nothing was saved."""
        if not self.state.exists():
            return 0
        tensors, facts = read_tensors(self.state, STATE_KEY)
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        try:
            objective.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{self.state} is of another network: {error}") from error
        for name, parameter in objective.named_parameters():
            prefix = f"optimizer.{name}."
            found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if found:
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in found.items()
                }
        return int(facts["step"])

    def save_objective(self, objective: Objective, record: dict[str, Any]) -> None:
        """Write what the checkpoint leaves out."""
        tensors = {n: t.detach().cpu().contiguous() for n, t in objective.beside_encoder().items()}
        write_tensors(self.objective, tensors, {OBJECTIVE_KEY: record})


def differences(known: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """Return "field: known there, asked now" for each field that differs."""
    found = []
    for key in sorted(known.keys() | asked.keys()):
        here, now = known.get(key), asked.get(key)
        if isinstance(here, dict) and isinstance(now, dict):
            found += differences(here, now, f"{prefix}{key}.")
        elif here != now:
            found.append(f"{prefix}{key} is {here!r} there, {now!r} now")
    return found


def _moments(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in objective.named_parameters()
        if parameter in optimizer.state
    }
