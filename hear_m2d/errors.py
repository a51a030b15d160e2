"""Sentences for people: the nearest name to a misspelt one, and the one exception of our own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkFailedError(RuntimeError):
    """The input was fine and the work itself failed: the command line exits with 1, not 2."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that names an unknown ``what``, the nearest known names, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names)}."
