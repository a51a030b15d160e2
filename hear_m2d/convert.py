"""`hear-m2d convert`: any checkpoint that can be read, written as one of our own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="IN")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.safetensors")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def convert(source: Path, target: Path, force: bool) -> None:
    """Write a published checkpoint (.pth, .zip, folder) as one .safetensors file of our own."""
    from hear_m2d.checkpoint import build_model, save_checkpoint
    from hear_m2d.weights import read_weights

    if target.suffix != ".safetensors":
        raise click.UsageError(f"{target}: a checkpoint of ours ends in .safetensors")
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another name, or --force")
    checkpoint = read_weights(source)
    save_checkpoint(target, build_model(checkpoint))
    for note in checkpoint.notes:
        click.echo(note)
    click.echo(f"wrote {target}")
