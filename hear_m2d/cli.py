"""`hear-m2d`: the core's own commands, and those that the installed parts declare.

Each part lists its commands in the entry-point group ``hear_m2d.commands``. A command whose packages
are missing stays listed in ``--help``, with the line to type. Exit codes: 0 done, 1 the work itself
failed, 2 bad input or usage (one line on standard error).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import click

from hear_m2d._checkout import installed_version
from hear_m2d.utils.errors import InputError, WorkFailedError, unknown_name
from hear_m2d.utils.files import disk_is_full


class PartCommand(click.Command):
    """A command that needs packages of an extra: ``@click.command(cls=PartCommand, needs=…, install=…)``.

    Args:
        needs: Top-level modules that must be importable.
        install: The line to type where one is missing.
        kwargs: As for :class:`click.Command`.
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


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """Read an option that is a JSON object."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}", ctx, param) from error
    if not isinstance(parsed, dict):
        raise click.BadParameter(f"""{value!r} is no JSON object such as '{{"layers": [3]}}'""", ctx, param)
    return parsed


MODEL_OPTIONS = click.option(
    "--model-options",
    "options",
    default="{}",
    callback=json_object,
    metavar="JSON",
    help="""Options of `load_model`, a JSON object such as '{"output": "mean"}'.""",
)


class Commands(click.Group):
    """The core's commands plus those of the entry-point group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name, sorted."""
        parts = {point.name for point in entry_points(group="hear_m2d.commands")}
        return sorted(parts | set(super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name, importing its part only now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in entry_points(group="hear_m2d.commands", name=cmd_name):
            loaded: click.Command = point.load()
            return loaded
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which name is nearest."""
        name = click.utils.make_str(args[0])
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(unknown_name("command", name, self.list_commands(ctx)), ctx=ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(installed_version(), package_name="hear-m2d")
def cli() -> None:
    """Audio embeddings from M2D and MSM-MAE: embed, pretrain, evaluate.

    Set HEAR_M2D_TRACEBACK=1 to see the Python traceback behind an error.
    """


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: str, as_json: bool) -> None:
    """Describe a checkpoint: kind, sizes, rate, hop, statistics, licence, training."""
    from hear_m2d.checkpoint.card import describe
    from hear_m2d.checkpoint.resolve import read_weights

    facts = describe(read_weights(file))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        for line in _lines(value):
            click.echo(f"{name:<{width}}  {line}")
            name = ""


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [f"{key}: {item}" for key, item in value.items()]
    lines = map(str, value if isinstance(value, list) else ["none" if value is None else value])
    # The file's own texts: nothing in them may steer the terminal.
    return ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines] or ["none"]


def main(args: Sequence[str] | None = None) -> None:
    """Run ``hear-m2d`` and exit: 0 done, 1 the work failed, 2 bad input or usage.

    Only errors that a user or an administrator can mend are reported in one line; see :func:`report`. Any
    other exception is a bug and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        code = cli.main(args=words, prog_name="hear-m2d", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        code, line = report(error)
        if not line or os.environ.get("HEAR_M2D_TRACEBACK"):
            raise
        click.echo(f"error: {line}", err=True)
        sys.exit(code)


def report(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error and its message in one line; an empty message for a bug."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = text.partition(". ")[0]
    if isinstance(error, click.ClickException):
        return 2, " ".join(error.format_message().split())
    if isinstance(error, InputError):
        return 2, text
    if isinstance(error, WorkFailedError):
        return 1, text
    if disk_is_full(error):
        return 1, f"{text}: make room, then give the same command again"
    # torch has no exception class for a CPU without memory
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "DefaultCPUAllocator" in text:
        return 1, f"the device has too little memory: {first}. Try a smaller batch, or --device cpu"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return 1, (
            "torch cannot compile the network here (a CPU needs a C++ compiler, a GPU needs a C compiler and "
            f"Python's headers): {first}. Leave compile out"
        )
    return (2, text) if isinstance(error, OSError) else (1, "")


if __name__ == "__main__":
    main()
