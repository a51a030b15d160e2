"""Trackers besides metrics.jsonl: always TensorBoard, and accelerate's other trackers by name."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, MissingPackageError, unknown_name

logger = logging.getLogger(__name__)


def check_trackers(names: Sequence[Any]) -> None:
    """Raise an InputError if accelerate does not know a tracker, or its package is missing."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if isinstance(name, str) and name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(unknown_name("tracker", name, LOGGER_TYPE_TO_CLASS))
        if isinstance(name, str) and importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"--track {name} needs its package. Type: pip install {name}", name=name
            )


class Trackers:
    """The trackers of a run; only the main process makes them.

    ``names`` are accelerate's trackers besides TensorBoard, or instances of its ``GeneralTracker``. Trackers
    that store settings get the plain ones of ``settings``. ``step`` is where the run is: TensorBoard hides
    the lines after it, which a resumed run writes again.

    Raises:
        InputError: One of them cannot start.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
        *,
        step: int = 0,
    ) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        plain = {k: v for k, v in (settings or {}).items() if isinstance(v, str | int | float | bool)}
        try:
            # A run without a state starts again, and repeats the probe before its first step.
            tensorboard = LOGGER_TYPE_TO_CLASS["tensorboard"]
            self._open = [tensorboard("tensorboard", str(folder), purge_step=step + 1 if step else 0)]
            for name in dict.fromkeys(names):
                if isinstance(name, str) and name != "tensorboard":
                    kind = LOGGER_TYPE_TO_CLASS[name]
                    logging_dir = (str(folder),) if kind.requires_logging_directory else ()
                    more = {"name": folder.resolve().name, "dir": str(folder)} if name == "wandb" else {}
                    self._open.append(kind("hear-m2d", *logging_dir, **more))
                elif not isinstance(name, str):
                    self._open.append(name)
            for number, tracker in enumerate(self._open):
                getattr(tracker, "start", lambda: None)()  # older versions of accelerate start at once
                if number:
                    tracker.store_init_configuration(plain)
        except Exception as error:  # a missing login or connection is reported now, not after days
            raise InputError(
                f"the trackers tensorboard, {', '.join(map(str, names))} cannot start: {error} "
                f"Correct this, or leave out --track"
            ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Send a line of the log to all trackers; one that fails is left out, and the run goes on."""
        values = {name: value for name, value in line.items() if name != "step"}
        self._each(lambda tracker: tracker.log(values, step=line["step"]))

    def finish(self) -> None:
        """Close them; one that fails is logged, as in :meth:`log`."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, work: Callable[[Any], object]) -> None:
        for tracker in list(self._open):
            try:
                work(tracker)
            except Exception as error:  # an unavailable service must not stop a run of days
                logger.warning("the tracker %s failed and gets no more lines: %s", tracker.name, error)
                self._open.remove(tracker)
