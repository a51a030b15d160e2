"""`hear-m2d validate`, `evaluate` and `report`: the official HEAR tools on any HEAR module, and scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from hear_m2d.evaluation.archives.catalog import BASE_URL
from hear_m2d.evaluation.hear.requirements import INSTALL_EVALUATE, INSTALL_HEARVALIDATOR
from hear_m2d.utils.commands import MODEL_OPTIONS, PartCommand, check_parent
from hear_m2d.utils.errors import WorkFailedError

INSTALL_REPORT = "python -m pip install 'hear-m2d[report]'"
NEEDS = ("heareval", "pytorch_lightning", "sed_eval")  # the full list is checked when the command runs
MODEL = click.option(
    "--model",
    metavar="PATH|NAME|URL",
    help="What the module's load_model takes, of hear_m2d also a name, https://… or hf://OWNER/REPO; "
    "without it, the module's default model.",
)
MODULE = click.option(
    "--module",
    default="hear_m2d",
    show_default=True,
    help="Another module with the HEAR API.",
)
FILE = click.Path(path_type=Path, dir_okay=False)
DEVICE = click.option("--device", help="cpu, cuda or cuda:N; without it, the GPU where there is one.")


@click.command(cls=PartCommand, needs=("hearvalidator",), install=INSTALL_HEARVALIDATOR)
@MODEL
@MODULE
@MODEL_OPTIONS
@DEVICE
def validate(model: str | None, module: str, options: dict[str, Any], device: str | None) -> None:
    """Check a model with the official hear-validator.

    Exit code 0: it looks good; 1: the validator refused; 2: the model could not be loaded. The note on
    rounding errors is always printed.
    """
    from hear_m2d.evaluation.hear.validator import validate as run_validator

    run_validator(model, module=module, device=device, options=options)


@click.command(cls=PartCommand, needs=NEEDS, install=INSTALL_EVALUATE)
@MODEL
@click.option(
    "--tasks-dir", type=click.Path(path_type=Path), required=True, help="Folder whose sub-folders are tasks."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    help="Folder name of a task; may be repeated; default: all. With --download also a name of `hear-m2d "
    "tasks list`, `small` or `all`.",
)
@click.option("--grid", default="default", show_default=True, help="The kit's grid: default, fast, faster.")
@click.option("--grid-points", default=8, show_default=True, help="How many points of the grid are tried.")
@click.option(
    "--in-memory",
    type=bool,
    default=True,
    show_default=True,
    help="Whether prediction holds all embeddings in memory; false: it reads them from disk.",
)
@click.option(
    "--name", default="", help="The model's name in the results; default: the last part of --model."
)
@MODULE
@MODEL_OPTIONS
@DEVICE
@click.option("--jobs", type=int, help="How many tasks run at once; default: one per GPU, or one.")
@click.option("--ray", metavar="ADDRESS", help="Run the tasks on a Ray cluster: auto, local or HOST:PORT.")
@click.option("--download", "fetch", is_flag=True, help="Download and resample tasks that are missing.")
@click.option("--base-url", show_default=BASE_URL, help="Where --download finds the archives.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, and stop.")
def evaluate(
    tasks_dir: Path,
    out: Path,
    tasks: tuple[str, ...],
    fetch: bool,
    base_url: str | None,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Score a model with the official HEAR harness.

    Runs the official embeddings and predictions runners on each task, in a process of its own, prints a table
    and writes OUT/results.json. The same command again does only what is not finished. Exit code 0: every
    task has a score; 1: a task failed; 2: bad input.
    """
    from hear_m2d.evaluation.hear.harness import evaluate as run_harness
    from hear_m2d.evaluation.hear.plan import make_plan, plan_table
    from hear_m2d.evaluation.hear.results import table
    from hear_m2d.evaluation.hear.settings import Evaluation

    if base_url is not None and not fetch:
        raise click.UsageError("--base-url says where to download from: give --download too")
    archives = (base_url or BASE_URL) if fetch else None
    wanted = Evaluation(tasks_dir=tasks_dir, out=out, tasks=tasks, download=archives, **settings)
    plan = make_plan(wanted, progress=print_line, dry_run=dry_run)
    if dry_run:
        click.echo(plan_table(plan))
        return
    with TaskTable([task.name for task in plan.tasks]) as progress:
        results = run_harness(wanted, plan=plan, progress=progress)
    click.echo(table(results))
    click.echo(f"written: {out / 'results.json'}")
    asked = {task.name for task in plan.tasks}
    bad = [entry["task"] for entry in results["tasks"] if entry["task"] in asked and entry["status"] != "ok"]
    if bad:
        raise WorkFailedError(f"no score for {', '.join(bad)}; why: {out / 'results.json'}, {out / 'logs'}")


def print_line(task: str, text: str) -> None:
    """Print one line of progress."""
    click.echo(f"{task}: {text}" if task else text, err=True)


class TaskTable:
    """The progress of many tasks: on a terminal one line per task, kept up to date; elsewhere plain lines.

    Args:
        names: The tasks' folder names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.width = max(map(len, names), default=0)

    def __enter__(self) -> TaskTable:
        on_terminal = sys.stderr.isatty()
        self.bars = {
            name: tqdm(total=0, bar_format="{desc}", position=position, leave=False)
            for position, name in enumerate(self.names if on_terminal else [])
        }
        for name in self.bars:
            self(name, "waiting")
        return self

    def __call__(self, task: str, text: str) -> None:
        """Show what a task is doing."""
        if task in self.bars:
            self.bars[task].set_description_str(f"{task:<{self.width}}  {text}")
        elif self.bars:
            tqdm.write(text, file=sys.stderr)
        else:
            print_line(task, text)

    def __exit__(self, *error: object) -> None:
        for bar in reversed(self.bars.values()):
            bar.close()


@click.command(cls=PartCommand, needs=("jinja2", "plotly"), install=INSTALL_REPORT)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=FILE, help="Write the page, one HTML file.")
@click.option("--markdown", type=FILE, help="Write the tables as Markdown.")
@click.option("--csv", type=FILE, help="Write one line for each task of each run.")
def report(runs: tuple[str, ...], out: Path | None, markdown: Path | None, csv: Path | None) -> None:
    """Put runs of `evaluate` beside the HEAR 2021 leaderboard.

    A RUN is the --out folder of `evaluate`, or its results.json; NAME=RUN gives it another name. Without an
    option, the Markdown tables are printed.
    """
    from hear_m2d.evaluation.report.report import write_report

    for option, path in (("--out", out), ("--markdown", markdown), ("--csv", csv)):
        check_parent(path, option)
    document = write_report(runs, html=out, md=markdown, table=csv)
    written = [str(path) for path in (out, markdown, csv) if path is not None]
    click.echo(f"written: {', '.join(written)}" if written else document)
