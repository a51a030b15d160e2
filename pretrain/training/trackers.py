"""Trackers besides metrics.jsonl: always TensorBoard, and accelerate's other trackers by name."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, MissingPackageError, unknown_name

logger = logging.getLogger(__name__)

PROJECT = "hear-m2d"
ALWAYS = "tensorboard"


def check_trackers(names: Sequence[Any]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is missing.

    Raises:
        ValueError: An unknown name.
        ImportError: A package that is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if not isinstance(name, str):
            continue
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(unknown_name("tracker", name, LOGGER_TYPE_TO_CLASS))
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"--track {name} needs its package. Type: pip install {name}", name=name
            )


class Trackers:
    """The trackers of a run; made by the main process alone.

    Args:
        folder: The run's folder; TensorBoard's files lie in it.
        names: Of accelerate's trackers, besides TensorBoard; or instances of its ``GeneralTracker``.
        settings: Settings of the run, for trackers that store them.
        step: Where the run is: TensorBoard hides the lines after it, which a resumed run writes again.

    Raises:
        ValueError: One of them cannot start.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
        *,
        step: int = 0,
    ) -> None:
        self._open: list[Any] = []
        try:
            self._begin(folder, names, settings or {}, step)
        except Exception as error:  # no login, no connection: reported now, not after days
            raise InputError(
                f"the trackers {', '.join(map(str, [ALWAYS, *names]))} cannot begin: {error} "
                f"Put that right, or leave --track out"
            ) from error

    def _begin(self, folder: Path, names: Sequence[Any], settings: Mapping[str, Any], step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # As in `cut_log`: a run without a state starts again, and repeats the probe before its first step.
        purged = step + 1 if step else 0
        self._open = [LOGGER_TYPE_TO_CLASS[ALWAYS](ALWAYS, str(folder), purge_step=purged)]
        for name in dict.fromkeys(names):
            if isinstance(name, str) and name != ALWAYS:
                kind = LOGGER_TYPE_TO_CLASS[name]
                place = (str(folder),) if kind.requires_logging_directory else ()
                more = {"name": folder.resolve().name, "dir": str(folder)} if name == "wandb" else {}
                self._open.append(kind(PROJECT, *place, **more))
            elif not isinstance(name, str):
                self._open.append(name)
        for tracker in self._open:
            getattr(tracker, "start", lambda: None)()  # older versions of accelerate start at once
        plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float | bool)}
        for tracker in self._open[1:]:
            tracker.store_init_configuration(plain)

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
