"""`hear-m2d convert`: write any readable checkpoint as one ``.safetensors`` in our format."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hear_m2d.utils.commands import FiniteRange
from hear_m2d.utils.errors import InputError

if TYPE_CHECKING:
    from hear_m2d.checkpoint.format import Checkpoint
    from hear_m2d.model.config import Options


def write_converted(
    checkpoint: Checkpoint,
    target: Path,
    *,
    options: Options,
    labels: tuple[str, ...],
    licence: str,
    dtype: str,
) -> Checkpoint:
    """Write a checkpoint in our format and return it; values that are given replace those of the file.

    Raises:
        InputError: An option that does not fit, a wrong number of labels, or a target that is the source.
    """
    from hear_m2d.checkpoint.build import with_options
    from hear_m2d.checkpoint.format import check_tensors, write_model_tensors

    if target.exists() and target.samefile(checkpoint.path):
        raise InputError(f"{target} is the file that is read: give another name")
    classes = len(checkpoint.config.labels)
    if labels and len(labels) != classes:
        raise InputError(f"{len(labels)} labels were given; the classifier has {classes} classes")
    converted = with_options(checkpoint, options, labels=labels)
    if licence and converted.config.licence not in (licence, "unknown"):
        remark = f"the license was given by the user at conversion; IN has: {converted.config.licence}"
        converted = dataclasses.replace(converted, remarks=(*converted.remarks, remark))
    config = dataclasses.replace(converted.config, licence=licence or converted.config.licence)
    converted = dataclasses.replace(converted, config=config, path=target)
    check_tensors(converted)
    write_model_tensors(target, converted.tensors, converted.stored_config(), dtype=dtype)
    return converted


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names: one a line, or AudioSet's ``class_labels_indices.csv``.

    AudioSet's classes are in the order of their machine ids as texts, not of that file's index.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a UTF-8 text of class names") from error
    if lines and {"mid", "display_name"} <= set(lines[0].split(",")):
        rows = sorted(csv.DictReader(lines), key=lambda row: str(row["mid"]))
        return tuple(str(row["display_name"]) for row in rows)
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path} holds no class names: write one a line")
    return names


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.safetensors")
@click.option("--sample-rate", type=int, help="Hertz, where IN does not say, or says it wrongly.")
@click.option(
    "--input-frames", type=int, help="Frames of one window, where they are not a multiple of a patch."
)
@click.option("--mean", type=FiniteRange(), help="Mean of the log-mel in training.")
@click.option("--std", type=FiniteRange(), help="Standard deviation of the log-mel in training.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names: one a line, or AudioSet's csv.")
@click.option(
    "--license", "--licence", "licence", default="", help="Terms of the weights, where IN does not say."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Of the stored tensors; float16 is half of the size.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def convert(
    source: str,
    target: Path,
    sample_rate: int | None,
    input_frames: int | None,
    mean: float | None,
    std: float | None,
    labels: Path | None,
    licence: str,
    dtype: str,
    force: bool,
) -> None:
    """Write IN (.pth, .zip, folder, a name) as one .safetensors file that says everything about itself."""
    from hear_m2d.checkpoint.card import notes_of
    from hear_m2d.checkpoint.resolve import read_weights
    from hear_m2d.model.config import Options

    if target.suffix.lower() != ".safetensors":
        raise click.UsageError(f"{target}: a checkpoint of ours ends in .safetensors")
    if target.is_dir():
        raise click.UsageError(f"{target} is a folder: give the name of a file")
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another name, or --force to replace it")
    options = Options(sample_rate=sample_rate, input_frames=input_frames, mean=mean, std=std)
    names = read_labels(labels) if labels else ()
    checkpoint = read_weights(source, verify=True)
    converted = write_converted(
        checkpoint, target, options=options, labels=names, licence=licence, dtype=dtype
    )
    config = converted.config
    kept = [f"an encoder of {config.encoder.depth} blocks"]
    kept += [f"a classifier of {len(config.labels)} classes"] if config.head_width else []
    kept += ["M2D-CLAP's audio projector"] if config.projector else []
    click.echo(f"kept: {', '.join(kept)}")
    click.echo(f"{config.frontend.sample_rate} Hz, mean {config.mean}, std {config.std}")
    for note in notes_of(converted):
        click.echo(note)
    click.echo(f"wrote {target}")
