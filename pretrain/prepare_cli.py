"""The command `hear-m2d prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from hear_m2d.cli import PartCommand
from hear_m2d.pretrain.cli import INSTALL


def _part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read i/n: which part of how many."""
    if value is None:
        return None
    try:
        number, count = map(int, value.split("/"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no part: give i/n, such as 3/64") from None
    return number, count


@click.command(cls=PartCommand, needs=("pyarrow",), install=INSTALL)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--sample-rate",
    type=click.IntRange(min=1000, max=192000),
    default=16000,
    show_default=True,
    help="Of the log-mel, hertz.",
)
@click.option(
    "--max-clip-s",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Longer files are cut into equal pieces.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes.  [default: up to 4, 1 for a small set]"
)
@click.option(
    "--shard", metavar="I/N", callback=_part, help="Make the i-th of n parts only, as one job of an array."
)
@click.option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: auto, local or HOST:PORT.")
@click.option("--dry-run", is_flag=True, help="List the source, say what would be made, and stop.")
def prepare(
    source: str,
    out: Path,
    sample_rate: int,
    max_clip_s: float,
    workers: int | None,
    shard: tuple[int, int] | None,
    ray: str | None,
    dry_run: bool,
) -> None:
    """Turn audio into log-mel shards for pretraining.

    SOURCE is a folder of audio in any format of libsndfile, any rate, mono or not; a CSV list; tar archives;
    Parquet with the files' bytes; or hf://datasets/owner/name. Files that cannot be used are listed in
    OUT/skipped.csv. An interrupted run is continued by the same command.
    """
    from hear_m2d.pretrain.data import prepare as work

    if ray is not None and (shard is not None or workers is not None):
        raise click.UsageError("--ray spreads the work itself: leave out --shard and --workers")
    if dry_run:
        task = work.list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
        todo = [] if task.is_finished() else task.todo(range(len(task.cuts)))
        kind, name = task.source.kind, task.source.facts()["name"]
        size = int(task.source.sizes.sum()) / 2**30
        click.echo(f"{kind} {name}: {len(task.source)} files, {size:.3f} GiB")
        click.echo(f"{len(task.cuts)} shards, {len(todo)} to be made")
        return
    if shard is not None:
        made = work.prepare_shard(
            source, out, shard=shard, sample_rate=sample_rate, max_clip_s=max_clip_s, workers=workers,
            progress=True,
        )  # fmt: skip
        left = f"of the whole set {made.missing} are missing" if made.missing else (
            "every shard of the set is there: type the command without --shard to finish it"
        )  # fmt: skip
        click.echo(f"{made.shards} shards of part {shard[0]}/{shard[1]} are there; {left}")
        return
    summary = work.prepare(
        source, out, sample_rate=sample_rate, max_clip_s=max_clip_s, workers=workers, ray=ray, progress=True
    )
    if summary.already:
        click.echo(f"{out} is already prepared from this audio with these settings.")
    click.echo(
        f"{out}: {summary.clips} clips, {summary.hours:.2f} h, mean {summary.mean:.4f}, std {summary.std:.4f}"
    )
    if summary.report is not None:
        told = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        click.echo(f"skipped: {told}; listed in {summary.report}")
