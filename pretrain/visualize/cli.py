"""The command `hear-m2d visualize`."""

from __future__ import annotations

from pathlib import Path

import click

from hear_m2d.pretrain.cli import INSTALL
from hear_m2d.utils.commands import PartCommand


@click.command(cls=PartCommand, needs=("matplotlib", "accelerate", "jinja2"), install=INSTALL)
@click.argument("model", metavar="MODEL_OR_RUN")
@click.argument("audio", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of page, pictures, sounds."
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
    "--heads", metavar="I,J,…", help="Heads from 0, and the word mean; or all.  [default: mean, and four]"
)
@click.option(
    "--start",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds into each file at which the part to draw begins.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the masks.")
@click.option("--no-attention", is_flag=True, help="Only reconstructions.")
@click.option("--no-sound", is_flag=True, help="No sounds of the reconstructions.")
def visualize(
    model: str,
    audio: tuple[Path, ...],
    out: Path,
    queries: tuple[str, ...],
    layers: str | None,
    heads: str | None,
    start: float,
    seed: int,
    no_attention: bool,
    no_sound: bool,
) -> None:
    """Draw what a network learned: OUT/index.html, with pictures and sounds beside it.

    MODEL_OR_RUN: a run's folder (also while it trains), or a checkpoint as for `load_model`. AUDIO: files, or
    folders of them. Of an MSM-MAE run: what it paints into hidden patches, and how that sounds. Of every
    network: what chosen patches attend to, by layer and head.
    """
    from hear_m2d.pretrain.visualize.network import Look
    from hear_m2d.pretrain.visualize.network import visualize as draw
    from hear_m2d.pretrain.visualize.queries import parse_indices, parse_query

    look = Look(
        queries=tuple(parse_query(text) for text in queries),
        layers=parse_indices(layers, "--layers"),
        heads=parse_indices(heads, "--heads", mean=True),
        start_s=start,
        seed=seed,
        sounds=not no_sound,
        attention=not no_attention,
    )
    result = draw(model, audio, out, look)
    for sentence in result.left_out:
        click.echo(f"left out: {sentence}", err=True)
    click.echo(
        f"wrote {result.page}: {len(result.clips)} of {len(result.clips) + len(result.left_out)} files"
    )
