"""The folder of a run: its settings, training states and log. A run can be interrupted at any moment.

run.json                  what this run is: recipe, data, steps, and its history
metrics.jsonl             one line per logged step
tensorboard/              the same, for TensorBoard
state-<step>.safetensors  weights, optimizer moments and step, to resume from
checkpoint.safetensors    the encoder, for load_model
objective.safetensors     the rest: predictor or decoder, target network
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hear_m2d.checkpoint.format import write_tensors
from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.recipe import recipe_of_record
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import atomic_write_text, folder_owner, write_json

OBJECTIVE_KEY = "hear_m2d_objective"
NOT_COMPARED = ("history", "start")  # fields that record events, not settings


class RunFolder:
    """The files of one run; the folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "run.json"
        self.metrics = folder / "metrics.jsonl"
        self.checkpoint = folder / "checkpoint.safetensors"
        self.objective = folder / "objective.safetensors"

    def known(self) -> dict[str, Any] | None:
        """Return the content of ``run.json``; None if no run was started here.

        Raises an InputError if the folder holds something else, or a damaged ``run.json``.
        """
        # Data and noise are prepared before run.json is written.
        record = folder_owner(self.folder, self.record.name, ignore=("data", "noise"))
        if record is None:
            return None
        if not {"recipe", "steps", "data"} <= record.keys() or not isinstance(record["recipe"], dict):
            raise InputError(f"{self.record} is not of a pretraining run: give an empty --out")
        record["recipe"] = recipe_of_record(record["recipe"], str(self.record)).to_json()
        return record

    def changed(
        self, record: dict[str, Any], *, step: int = 0, force: bool = False
    ) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which the requested run differs from this folder's: none, unless forced.

        Raises an InputError for another run, and if ``step`` is after the last requested step.
        """
        known = self.known()
        if known is None:
            return {}
        changed = changes({name: known[name] for name in known if name not in NOT_COMPARED}, record)
        if changed and not force:
            differing = [
                f"{name} is {before!r} there, {now!r} now" for name, (before, now) in changed.items()
            ]
            raise InputError(
                f"{self.folder} holds another run: {'; '.join(differing)}. Give another --out, the same "
                f"settings, or --force to continue it with these"
            )
        if changed and step > record["steps"]:
            raise InputError(f"{self.folder} is at step {step} already: it cannot end at {record['steps']}")
        return changed

    def begin(
        self, record: dict[str, Any], changed: dict[str, tuple[Any, Any]], step: int, start: Sequence[str]
    ) -> None:
        """Write ``run.json``, or add what :meth:`changed` returned to its ``history``.

        An existing checkpoint is kept, under its number of steps. ``start`` says how each part of the network
        was initialized.
        """
        known = self.known()
        if known is None:
            write_json(self.record, {**record, "start": list(start), "history": []})
        elif changed:
            # First, so that the run is marked as unfinished before its length changes.
            for path in (self.checkpoint, self.objective):
                if path.exists():
                    path.replace(path.with_name(f"{path.stem}-{known['steps']}{path.suffix}"))
            history = [*known.get("history", []), {"step": step, "changed": changed}]
            write_json(self.record, {**record, "start": known.get("start", []), "history": history})

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def sync_log(self) -> None:
        """Sync the lines written so far to disk."""
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def cut_log(self, step: int) -> tuple[float | None, list[int]]:
        """Remove the lines after a step, which a resumed run writes again.

        Returns the loss of the first line, if there is one, and the steps that were probed.
        """
        if not self.metrics.exists():
            return None, []
        kept: list[dict[str, Any]] = []
        for line in self.metrics.read_text().splitlines():
            try:
                if (entry := json.loads(line))["step"] <= step:
                    kept.append(entry)
            except ValueError:
                continue  # a line cut short when the process was killed
        atomic_write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))
        losses = (float(entry["loss"]) for entry in kept if "loss" in entry)  # lines of probes have no loss
        return next(losses, None), [entry["step"] for entry in kept if "probe_s" in entry]

    def save_objective(self, objective: Objective, record: dict[str, Any]) -> None:
        """Write the parts that the checkpoint leaves out."""
        tensors = {n: t.detach().cpu().contiguous() for n, t in objective.beside_encoder().items()}
        write_tensors(self.objective, tensors, {OBJECTIVE_KEY: record})

    @contextmanager
    def report_io_errors(self) -> Iterator[None]:
        """Report I/O errors during training as runtime failures, not as bad input."""
        try:
            yield
        except OSError as error:
            raise WorkFailedError(
                f"{str(error).rstrip('.')}. The same command continues {self.folder} from the last saved "
                f"state"
            ) from error


def changes(known: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, with the value in the folder and the requested value."""
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(known.keys() | asked.keys()):
        here, now = known.get(key), asked.get(key)
        if isinstance(here, dict) and isinstance(now, dict):
            differing |= changes(here, now, f"{prefix}{key}.")
        elif here != now and prefix + key != "recipe.description":  # a text, which changes nothing
            differing[f"{prefix}{key}"] = here, now
    return differing
