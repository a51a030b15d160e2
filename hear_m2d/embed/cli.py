"""The command `hear-m2d embed`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_m2d.utils.commands import MODEL_OPTIONS

if TYPE_CHECKING:
    from hear_m2d.embed.loop import Summary


@click.command()
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--model",
    default="",
    help="A checkpoint's path or name, as for `load_model`.  [default: the package's own]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--what",
    type=click.Choice(["scene", "timestamps", "both"]),
    default="scene",
    show_default=True,
    help="One vector per clip, vectors in time, or both.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["npy", "parquet"]),
    help="[default: parquet if OUT ends in .parquet or with --ray, else npy]",
)
@click.option(
    "--list",
    "list_file",
    type=click.Path(path_type=Path),
    help="A text file with one path a line; relative ones count from its own folder.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the encoder.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Threads that decode; 0: decode and embed in turn.  [default: processors - 1; 0 on a CPU with two]  "
    "With --ray: beside each model.  [default: 1]",
)
@MODEL_OPTIONS
@click.option(
    "--ray", "ray_address", metavar="ADDRESS", help="Work on a Ray cluster: auto, local, or HOST:PORT."
)
@click.option("--force", is_flag=True, help="Start again: replace what an earlier run wrote to OUT.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and stop.")
def embed(
    inputs: tuple[str, ...],
    model: str,
    out: Path,
    what: str,
    output_format: str | None,
    list_file: Path | None,
    device: str,
    dtype: str,
    workers: int | None,
    options: dict[str, Any],
    ray_address: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Embed audio files.

    INPUT: files, folders (with all subfolders), or patterns in quotes ('recordings/**/*.flac'), in any common
    format and at any rate. The same command continues an interrupted run. Files that cannot be read are
    listed at the end, in OUT/failed.csv (npy) or OUT.failed.csv (parquet).
    """
    from hear_m2d.embed.embedder import ModelSpec
    from hear_m2d.embed.inputs import collect_inputs

    if not inputs and list_file is None:
        raise click.UsageError("give audio files, folders, patterns in quotes, or --list FILE")
    if "dtype" in options:
        raise click.UsageError(f"--model-options contains dtype: give --dtype {options['dtype']} instead")
    spec = ModelSpec(name=model, what=what, options=options | {"dtype": dtype}, device=device)
    if output_format is None:
        output_format = "parquet" if out.suffix == ".parquet" or ray_address else "npy"
    collected = collect_inputs(inputs, list_file)
    if collected.duplicates:
        click.echo(f"{collected.duplicates} repeated mentions of the same files are left out", err=True)
    if dry_run:
        click.echo(
            f"{len(collected.clips)} clips below {collected.root}: "
            f"{collected.clips[0].name} … {collected.clips[-1].name}"
        )
        click.echo(f"{what} embeddings of {model or 'the default model'} as {output_format} to {out}")
        return
    if ray_address:
        if output_format != "parquet":
            raise click.UsageError("--ray writes Parquet: leave --format out")
        from hear_m2d.embed.ray import embed_on_ray

        run = partial(embed_on_ray, address=ray_address)
    else:
        from hear_m2d.embed.run import embed_files

        run = partial(embed_files, output_format=output_format)
    _report(out, run(collected, spec, out, workers=workers, force=force, progress=True))


def _report(out: Path, summary: Summary) -> None:
    before = f" ({summary.already} were done before)" if summary.already else ""
    click.echo(f"{out}: {summary.clips} clips, {summary.audio_s / 3600:.2f} h of audio{before}")
    if summary.clips:
        click.echo(
            f"{summary.hours_per_minute:.2f} audio hours per minute; the model waited for data "
            f"{100 * summary.waiting_share:.0f} % of the time"
        )
    if summary.many_channels:
        click.echo(f"{summary.many_channels} files with more than two channels were averaged")
    if summary.report is not None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items())
        click.echo(f"failed: {reasons}; listed in {summary.report}")
