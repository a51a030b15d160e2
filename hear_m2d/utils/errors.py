"""Sentences for people: the nearest name to a misspelt one, and the two exceptions of our own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """The user's input is wrong: the command line prints one line and exits with 2."""


class WorkFailedError(RuntimeError):
    """The input was fine and the work itself failed: the command line exits with 1, not 2."""


def check_whole_numbers(**values: Any) -> None:
    """Raise a ValueError that names the first value that is no whole number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}; it is a whole number")


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that names an unknown ``what``, the nearest known names, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names)}."
