"""The command `hear-m2d visualize`."""

from __future__ import annotations

from pathlib import Path

import click

from hear_m2d.pretrain.cli import INSTALL
from hear_m2d.utils.commands import FiniteRange, PartCommand


@click.command(cls=PartCommand, needs=("matplotlib", "accelerate", "jinja2"), install=INSTALL)
@click.argument("model", metavar="MODEL_OR_RUN")
@click.argument("audio", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the page, pictures and sounds."
)
@click.option(
    "--query",
    "queries",
    multiple=True,
    metavar="TIME_S,MEL",
    help="A patch whose attention to draw: seconds and mel bin (1.2,40) or frequency (1.2,440Hz), or the "
    "word class; may be repeated.  [default: class token, loudest patch, two others]",
)
@click.option("--layers", metavar="I,J,…", help="Blocks from 0, -1 the last; or all.  [default: four]")
@click.option(
    "--start",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds into each file at which the window to draw begins.",
)
def visualize(
    model: str, audio: tuple[Path, ...], out: Path, queries: tuple[str, ...], layers: str | None, start: float
) -> None:
    """Draw what a network learned: OUT/index.html, with pictures and sounds beside it.

    MODEL_OR_RUN: a run's folder (also while it trains), or a checkpoint as for `load_model`. AUDIO: files, or
    folders of them. For an MSM-MAE run: the reconstruction of masked patches, and its sound. For every
    network: the attention of chosen patches, by layer and head.
    """
    from hear_m2d.pretrain.visualize.page import VisualizeOptions
    from hear_m2d.pretrain.visualize.page import visualize as draw
    from hear_m2d.pretrain.visualize.queries import parse_layers, parse_query

    options = VisualizeOptions(tuple(map(parse_query, queries)), parse_layers(layers), start)
    result = draw(model, audio, out, options)
    for sentence in result.left_out:
        click.echo(f"left out: {sentence}", err=True)
    click.echo(
        f"wrote {result.page}: {len(result.clips)} of {len(result.clips) + len(result.left_out)} files"
    )
