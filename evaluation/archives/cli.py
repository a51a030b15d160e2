"""`hear-m2d tasks`: list, download, resample and check the tasks of HEAR."""

from __future__ import annotations

from pathlib import Path

import click

from hear_m2d.evaluation.archives.catalog import BASE_URL, Task, all_tasks
from hear_m2d.evaluation.archives.folder import (
    METADATA,
    rate_folders,
    read_task,
    task_folders,
)
from hear_m2d.utils.commands import PartCommand, aligned
from hear_m2d.utils.errors import InputError, WorkFailedError

INSTALL = "pip install 'hear-m2d[evaluation]'"
DIR = click.Path(path_type=Path)
JOBS = click.option("--jobs", type=click.IntRange(min=1), help="How many threads; default: one per core.")
TASK = click.option("--task", "names", multiple=True, help="Folder name of a task; may be repeated.")


@click.group()
def tasks() -> None:
    """List, download, resample and check the tasks of HEAR."""


@tasks.command("list")
@click.argument("folder", metavar="[DIR]", type=DIR, required=False)
def list_tasks(folder: Path | None) -> None:
    """List the 19 tasks of HEAR and, with DIR, which are there, at which rates, and whether complete."""
    click.echo(catalog_table() if folder is None else folder_table(folder))


@tasks.command(cls=PartCommand, needs=("requests",), install=INSTALL)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--to", "folder", metavar="DIR", type=DIR, required=True, help="Folder for the task folders.")
@click.option("--base-url", show_default=BASE_URL, help="A record, or a folder of archives.")
@click.option("--from", "source", metavar="PATH", type=DIR, help="Unpack an archive, or a folder of them.")
@click.option("--keep-archives", is_flag=True, help="Keep the downloaded archives, in DIR/.download.")
def download(
    names: tuple[str, ...], folder: Path, base_url: str | None, source: Path | None, keep_archives: bool
) -> None:
    """Download and unpack tasks: their directory's or the leaderboard's NAME, `small`, or `all`.

    `small` are the tasks with at most 1 GB of audio. The same command continues after an interruption. With
    --from, archives of this machine are unpacked instead; without NAME, all of them.
    """
    from hear_m2d.evaluation.archives.download import download_tasks, import_archives

    if source is not None and (base_url is not None or keep_archives):
        raise click.UsageError("--from downloads nothing: leave out --base-url and --keep-archives")
    if source is not None:
        done = import_archives(source, folder, names)
    elif names:
        done = download_tasks(names, folder, base_url=base_url or BASE_URL, keep=keep_archives)
    else:
        raise InputError("give the NAME of a task, `small` or `all`; hear-m2d tasks list has the names")
    for task in done:
        click.echo(task)


@tasks.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.option("--rate", type=int, required=True, help="In Hz: 16000, 22050, 32000, 44100 or 48000.")
@TASK
@JOBS
def resample(folder: Path, rate: int, names: tuple[str, ...], jobs: int | None) -> None:
    """Write the audio of tasks at another rate, from the highest rate that is complete.

    The same command continues after an interruption.
    """
    from hear_m2d.evaluation.archives.resample import resample_tasks

    for done in resample_tasks(folder, rate, names=names, jobs=jobs):
        extra = f", {len(done.result.extra)} extra" if done.result.extra else ""
        speed = f" ({done.audio_s / 60 / done.wall_s:.1f} hours per minute)" if done.files else ""
        click.echo(
            f"{done.task}: {done.result.listed} files at {rate} Hz{extra}; {done.files} written from "
            f"{done.source_rate} Hz, {done.audio_s / 3600:.3f} h of audio in {done.wall_s:.1f} s{speed}"
        )
        for name in done.result.extra[:5]:
            click.echo(f"  extra: {name}")


@tasks.command(cls=PartCommand, needs=("pandas",), install=INSTALL)
@click.argument("folder", metavar="DIR", type=DIR)
@click.option(
    "--rate",
    type=click.IntRange(min=1),
    help="The model's sample rate, in Hz; default: all rates that are there.",
)
@TASK
@JOBS
@click.option("--all", "show_all", is_flag=True, help="Print every finding, not five of a kind.")
def check(folder: Path, rate: int | None, names: tuple[str, ...], jobs: int | None, show_all: bool) -> None:
    """Check tasks for what would make the official kit fail, before any embedding.

    Exit code 0: no errors (there may be warnings); 1: errors.
    """
    from hear_m2d.evaluation.archives.check import check_tasks, summarize

    findings = check_tasks(folder, names, rate, jobs=jobs)
    for line in summarize(findings, limit=len(findings) if show_all else 5):
        click.echo(line)
    errors = sum(finding.level == "error" for finding in findings)
    click.echo(f"errors: {errors}, warnings: {len(findings) - errors}")
    if errors:
        raise WorkFailedError(f"errors in {folder}: hear-m2d evaluate would fail or give a wrong score")


def catalog_table() -> str:
    """Return the table of all tasks, in rising size; GB is audio at 48 kHz, unpacked."""
    head = "leaderboard directory type classes clips seconds splits metric GB license"
    rows = [tuple(head.split())]
    for task in all_tasks():
        rows.append(
            (
                task.leaderboard,
                task.directory,
                f"{task.embedding_type} {task.prediction_type}",
                str(task.classes),
                str(task.clips),
                "any" if task.sample_duration is None else f"{task.sample_duration:g}",
                f"{task.folds} folds" if task.folds else "train, valid, test",
                task.evaluation[0],
                f"{task.audio_gb:g}",
                task.license,
            )
        )
    return "\n".join([*aligned(rows), "", "Licenses are recalled: check LICENSE.txt in the record."])


def folder_table(folder: Path) -> str:
    """Return what of HEAR is in a folder, and which other tasks are.

    Raises:
        InputError: The folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder of tasks at {folder}")
    known = {task.directory: task for task in all_tasks()}
    try:
        there = {path.absolute().name: path for path in task_folders(folder)}
    except InputError:  # it holds no task
        there = {}
    rows = [("task", "leaderboard", "audio")]
    rows += [(name, _column(known.get(name)), _audio(path)) for name, path in there.items()]
    rows += [(name, _column(task), "not there") for name, task in known.items() if name not in there]
    return "\n".join(aligned(rows))


def _column(task: Task | None) -> str:
    return task.leaderboard if task else "-"


def _audio(path: Path) -> str:
    """Return which rates a task has, and whether they are complete."""
    try:
        task = read_task(path)
    except InputError as problem:
        return f"broken: {problem}"
    states = []
    for rate in rate_folders(path):
        files = task.compare(rate)
        state = "complete" if files.complete else f"{len(files.missing)} of {files.listed} files missing"
        states.append(f"{rate} Hz {state}")
    return ", ".join(states) or f"none, only {METADATA}"
