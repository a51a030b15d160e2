"""One finding of the check of a task: an error or a warning that names task, file and row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a task."""

    level: Level
    """``error``: the kit fails or gives a wrong score; ``warning``: it does not."""
    kind: str
    """A few words; findings of one kind are counted together."""
    file: str
    """Relative to the task folder."""
    message: str
    row: str = ""
    """The line of a table, or the clip's name in a split."""
    task: str = ""
    """The task folder's name."""

    def __str__(self) -> str:
        row = f", {self.row}" if self.row else ""
        return f"{self.level}: {self.task}: {self.file}{row}: {self.message}"


def error(kind: str, file: str, message: str, *, row: str = "") -> Finding:
    """Return a finding that makes the kit fail or give a wrong score."""
    return Finding("error", kind, file, message, row)


def warning(kind: str, file: str, message: str, *, row: str = "") -> Finding:
    """Return a finding that the kit survives."""
    return Finding("warning", kind, file, message, row)
