"""The commands of the part `pretrain`: prepare."""

from __future__ import annotations

from pathlib import Path

import click

from hear_m2d.cli import PartCommand

INSTALL = "pip install 'hear-m2d[pretrain]'"


@click.command(cls=PartCommand, needs=("pyarrow",), install=INSTALL)
@click.argument("audio_dir", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--sample-rate", default=16000, show_default=True, help="Of the log-mel, hertz.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes.  [default: up to 4, 1 for a small set]"
)
def prepare(audio_dir: Path, out: Path, sample_rate: int, workers: int | None) -> None:
    """Turn a folder of audio into log-mel shards for pretraining.

    Any format of libsndfile, any rate, mono or not. Files that cannot be used are listed in OUT/skipped.csv.
    An interrupted run is continued by the same command.
    """
    from hear_m2d.pretrain.prepare import prepare as run

    summary = run(audio_dir, out, sample_rate=sample_rate, workers=workers, progress=True)
    if summary.already:
        click.echo(f"{out} is already prepared from this audio with these settings.")
    click.echo(
        f"{out}: {summary.clips} clips, {summary.hours:.2f} h, mean {summary.mean:.4f}, std {summary.std:.4f}"
    )
    if summary.report is not None:
        told = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        click.echo(f"skipped: {told}; listed in {summary.report}")
