"""`hear-m2d export`: a checkpoint as one ONNX or PyTorch file, front end included."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from hear_m2d.utils.commands import MODEL_OPTIONS

NEEDS_ONNX = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'hear-m2d[export]'"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@click.command()
@click.argument("model", type=click.Path())
@click.option("--format", "kind", type=click.Choice(list(SUFFIXES)), default="onnx", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write. Default: the checkpoint's name with .onnx or .pt2, in the current folder.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@MODEL_OPTIONS
def export(model: str, kind: str, out: Path | None, force: bool, options: dict[str, Any]) -> None:
    """Write a checkpoint as one ONNX or PyTorch file, front end included.

    The file takes a waveform (batch, samples) and gives the scene embedding and the columns. It is checked
    against the eager model first; exit code 1: it differs by more than 1e-4, and nothing was written.
    """
    missing = [name for name in NEEDS_ONNX if kind == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(
            f"--format onnx needs {', '.join(missing)}. Type: {INSTALL} (in a checkout: make install). "
            f"--format torch needs nothing more"
        )
    import hear_m2d
    from hear_m2d.checkpoint.resolve import bare_name
    from hear_m2d.export.verify import TOLERANCE
    from hear_m2d.export.write import check_target, export_onnx, export_torch

    out = out or Path(bare_name(model) + SUFFIXES[kind])
    check_target(out, force=force)  # before a large checkpoint is read
    write = export_onnx if kind == "onnx" else export_torch
    agreement = write(hear_m2d.load_model(model, **options), out, force=force)
    click.echo(
        f"largest difference to the eager model over {agreement.inputs} clips: "
        f"scene {agreement.scene:.1e}, columns {agreement.columns:.1e} (allowed: {TOLERANCE:.0e})"
    )
    click.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
