"""The two kinds of errors that the command line reports in one line, and checks that raise the first.

An :class:`InputError` is caused by the user's input (exit code 2), a :class:`WorkFailedError` is not (exit
code 1). Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """An input cannot be used; the message names it, its value and what to give instead (exit code 2)."""


class MissingPackageError(ImportError, InputError):
    """An optional package is not installed; the message has the line to type (exit code 2)."""


class WorkFailedError(RuntimeError):
    """The input was fine and the work itself failed (exit code 1)."""


def check_integers(*, minimum: int | None = None, **values: Any) -> None:
    """Raise an InputError that names the first value that is not an integer, or below a minimum."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} must be an integer, got {value!r}")
        if minimum is not None and value < minimum:
            raise InputError(f"{name} must be at least {minimum}, got {value}")


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence about an unknown name of a ``what``, with the nearest and all known names."""
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in names}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names)}."
