"""Shared by all commands: a command with optional packages, the option for the model, tables of text."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hear_m2d.utils.errors import InputError


class PartCommand(click.Command):
    """A command that needs top-level modules of an extra, and the line to type where one is missing.

    ``@click.command(cls=PartCommand, needs=…, install=…)``.
    """

    def __init__(self, *args: Any, needs: Sequence[str] = (), install: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = tuple(needs)
        self.install = install

    def missing(self) -> list[str]:
        """Return the needed modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the one-line help, or what to install first."""
        return f"(not installed: {self.install})" if self.missing() else super().get_short_help_str(limit)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, unless a package is missing."""
        if missing := self.missing():
            raise click.UsageError(
                f"`hear-m2d {self.name}` needs {', '.join(missing)}. Type: {self.install} "
                f"(in a checkout: make install)",
                ctx=ctx,
            )
        return super().invoke(ctx)


class FiniteRange(click.FloatRange):
    """A number in a range; not ``nan``, which is in every range of click's, and not ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number, or end with a message."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{number} is not a finite number.", param, ctx)


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """Read an option that is a JSON object."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON: {error}", ctx, param) from error
    if not isinstance(parsed, dict):
        raise click.BadParameter(
            f"""{value!r} is not a JSON object such as '{{"layers": [3]}}'""", ctx, param
        )
    return parsed


def check_parent(path: Path | None, option: str) -> None:
    """Raise an InputError if a path, which an option gives, would be below a file."""
    for parent in path.parents if path else ():
        if parent.is_file():
            raise InputError(f"{parent} is a file: give {option} another place")


MODEL_OPTIONS = click.option(
    "--model-options",
    "options",
    default="{}",
    callback=json_object,
    metavar="JSON",
    help="""Options of `load_model`, a JSON object such as '{"output": "mean"}'.""",
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]
