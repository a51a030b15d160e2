"""What is said in a checkout that is not installed.

The parts `pretrain` and `evaluation` stand at the top of the repository and become `hear_m2d.pretrain`
and `hear_m2d.evaluation` only by installation. Without it Python would say no more than that there is no
such module.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

PARTS = ("hear_m2d.pretrain", "hear_m2d.evaluation")


class MissingPartFinder:
    """Answers for the missing parts, after every other finder, with the line to type."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for a missing part; say nothing about any other module."""
        if fullname not in PARTS:
            return None
        place = Path(__file__).resolve().parent.parent
        raise ModuleNotFoundError(
            f"{fullname} is missing: the hear_m2d at {place} is a checkout that is not installed. "
            f"Type there: make install (or: pip install -e .)",
            name=fullname,
        )


def explain_missing_parts() -> None:
    """Let the import of a missing part explain itself; change nothing where the parts are installed."""
    if MissingPartFinder not in sys.meta_path and importlib.util.find_spec(PARTS[0]) is None:
        sys.meta_path.append(MissingPartFinder)


def installed_version() -> str:
    """Return the installed version, or say that there is none."""
    try:
        return version("hear-m2d")
    except PackageNotFoundError:
        return "(a checkout that is not installed: make install, or pip install -e .)"
