"""`hear-m2d`: the table of commands, `info`, and the messages of errors.

A command whose packages are missing stays listed in ``--help``, with the line to type. Exit codes: 0 done,
1 the work itself failed, 2 bad input or usage (one line on standard error).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from hear_m2d.utils.errors import InputError, WorkFailedError, unknown_name
from hear_m2d.utils.files import disk_is_full
from hear_m2d.utils.version import installed_version

# Each command and its module, which is imported when the command is used or described.
COMMANDS = {
    "convert": "hear_m2d.checkpoint.convert:convert",
    "embed": "hear_m2d.embed.cli:embed",
    "evaluate": "hear_m2d.evaluation.cli:evaluate",
    "export": "hear_m2d.export.cli:export",
    "finetune": "hear_m2d.evaluation.finetune.cli:finetune",
    "linear": "hear_m2d.evaluation.linear.cli:linear",
    "prepare": "hear_m2d.pretrain.cli:prepare",
    "pretrain": "hear_m2d.pretrain.cli:pretrain",
    "probe": "hear_m2d.evaluation.linear.cli:probe",
    "report": "hear_m2d.evaluation.cli:report",
    "tasks": "hear_m2d.evaluation.archives.cli:tasks",
    "validate": "hear_m2d.evaluation.cli:validate",
    "visualize": "hear_m2d.pretrain.visualize.cli:visualize",
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the name of every command, sorted."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        name = click.utils.make_str(args[0])
        if not name.startswith("-") and name not in self.list_commands(ctx):
            raise click.UsageError(unknown_name("command", name, self.list_commands(ctx)), ctx=ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(installed_version(), package_name="hear-m2d")
def cli() -> None:
    """Audio embeddings from M2D and MSM-MAE: embed, pretrain, evaluate.

    Set HEAR_M2D_TRACEBACK=1 to see the Python traceback behind an error.
    """


@cli.command()
@click.argument("file", type=click.Path(), default="")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verify", is_flag=True, help="Compare the tensors with their SHA-256, also of a large file.")
def info(file: str, as_json: bool, verify: bool) -> None:
    """Describe a checkpoint: kind, sizes, rate, hop, statistics, license, training.

    Without FILE, the default model of the package.
    """
    from hear_m2d.checkpoint.card import describe
    from hear_m2d.checkpoint.resolve import read_weights

    facts = describe(read_weights(file, verify=verify or None))
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
    # Texts from the file: they must not contain control characters for the terminal.
    return ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines] or ["none"]


def main(args: Sequence[str] | None = None) -> None:
    """Run ``hear-m2d`` and exit: 0 done, 1 the work failed, 2 bad input or usage.

    Only errors that a user or an administrator can correct are reported in one line; see :func:`report`. Any
    other exception is a bug and keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hear_m2d").setLevel(logging.INFO)  # only warnings of other libraries
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
