"""Probes during training: at intervals, how well the frozen embeddings separate labeled clips.

The main process probes and the others wait. Probes change nothing that the training depends on: no weights,
no modes, no random state. Runs with and without probes end with the same weights.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hear_m2d.pretrain.objectives.base import Objective
from hear_m2d.pretrain.objectives.build import hear_model
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.utils.errors import InputError, MissingPackageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeSettings:
    """The labeled sets of probes, and when to probe.

    Attributes:
        paths: HEAR task folders, or CSV files with the columns file and label.
        every: ``10 epochs``, ``500 steps``; a bare number counts epochs. The first and the last step of a run
            are probed in any case.
        clips: Maximum number of clips of a set; of a larger set each class keeps its share.
    """

    paths: tuple[Path, ...] = ()
    every: str = "10 epochs"
    clips: int = 1000

    def steps(self, epoch: int) -> int:
        """Return the number of steps between two probes; ``epoch`` is the number of steps in an epoch."""
        match = re.fullmatch(r"\s*(\d+)\s*(epochs?|steps?)?\s*", self.every)
        if not match or not int(match[1]):
            raise InputError(
                f"probe-every is {self.every!r}: give epochs or steps, as in 10epochs or 500steps"
            )
        return int(match[1]) * (1 if (match[2] or "").startswith("step") else max(epoch, 1))


class Probes:
    """The labeled sets, read once; only the main process needs to ``read`` them.

    ``sample_rate`` is that of the network, ``epoch`` the number of steps in an epoch.

    Raises:
        FileNotFoundError: A set, or a part of its audio, does not exist.
        InputError: A set cannot be used, two sets have the same name, or scikit-learn is not installed.
    """

    def __init__(
        self, settings: ProbeSettings, *, sample_rate: int, epoch: int = 1, read: bool = True
    ) -> None:
        self.wanted = bool(settings.paths)
        self.every = settings.steps(epoch)
        self.sets: list[Any] = []
        if not (self.wanted and read):
            return
        if importlib.util.find_spec("sklearn") is None:
            install = "pip install 'hear-m2d[evaluation]'"
            raise MissingPackageError(f"--probe needs scikit-learn. Type: {install}", name="sklearn")
        from hear_m2d.evaluation.linear.probes import read_labeled

        for path in settings.paths:
            labeled = read_labeled(path, sample_rate).limited(settings.clips)
            if labeled.name in [known.name for known in self.sets]:
                raise InputError(f"two probes are called {labeled.name}: rename one of them")
            self.sets.append(labeled)

    def due(self, step: int, steps: int) -> bool:
        """Return whether to probe after this step."""
        return self.wanted and (step % self.every == 0 or step == steps)

    def describe(self) -> str:
        """Return a sentence about the labeled sets."""
        sets = [f"{s.name} ({'; '.join(s.notes) or f'{len(s.clips)} clips'})" for s in self.sets]
        return f"probes every {self.every} steps: {', '.join(sets)}"

    def run(
        self, objective: Objective, recipe: Recipe, *, mean: float, std: float, step: int
    ) -> dict[str, Any]:
        """Return a line for the log: ``probe/<set>/knn``, ``…/linear``, ``…/majority``, and the seconds.

        ``majority`` is the score of always answering with the largest class. A set that can no longer be read
        is left out with a warning: the run goes on.
        """
        from hear_m2d.evaluation.linear.probes import embed_task, probe

        start = time.perf_counter()
        line: dict[str, Any] = {"step": step}
        # A separate model with the same weights: the objective stays in training mode.
        model = hear_model(objective, recipe, mean=mean, std=std, training={})
        model.frontend.to(next(objective.encoder.parameters()).device)
        for labeled in self.sets:
            try:
                result = probe(embed_task(model, labeled), labeled)
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                logger.warning("no probe of %s at step %d: %s", labeled.name, step, error)
                continue
            line[f"probe/{labeled.name}/knn"] = result.knn
            line[f"probe/{labeled.name}/linear"] = result.linear
            line[f"probe/{labeled.name}/majority"] = result.majority
            logger.info(
                "step %d, %s: %s of nearest neighbors %.3f, linear %.3f; of the largest class alone %.3f",
                step, labeled.name, result.metric, result.knn, result.linear, result.majority,
            )  # fmt: skip
        return {**line, "probe_s": time.perf_counter() - start}
