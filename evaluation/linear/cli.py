"""`hear-m2d probe`: how well a checkpoint's embeddings separate labeled clips, in a minute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hear_m2d.cli import PartCommand

if TYPE_CHECKING:
    from hear_m2d.evaluation.linear.probes import ProbeResult

INSTALL = "pip install 'hear-m2d[evaluation]'"


@click.command(cls=PartCommand, needs=("sklearn",), install=INSTALL)
@click.argument("model")
@click.argument("tasks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--knn", is_flag=True, help="Nearest neighbors alone.")
@click.option("--linear", is_flag=True, help="Logistic regression alone.")
@click.option(
    "--neighbors",
    "--neighbours",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many vote.",
)
@click.option("--clips", type=click.IntRange(min=1), help="Most clips of a set.  [default: all]")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of embeddings.  [default: probes/ in the cache of hear-m2d]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(
    model: str,
    tasks: tuple[Path, ...],
    knn: bool,
    linear: bool,
    neighbors: int,
    clips: int | None,
    cache: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score MODEL's embeddings on TASKS: HEAR scene tasks, or CSV files with the columns file and label.

    Quick and deterministic. The papers' linear evaluation is `hear-m2d linear`, and official HEAR scores come
    from `hear-m2d evaluate`. Embeddings are kept, so that a second call takes seconds.
    """
    import hear_m2d
    from hear_m2d.checkpoint.download import cache_folder
    from hear_m2d.evaluation.linear.probes import embed_task, read_labelled
    from hear_m2d.evaluation.linear.probes import probe as run
    from hear_m2d.utils.device import pick_device
    from hear_m2d.utils.progress import ProgressBar

    network = hear_m2d.load_model(model).to(pick_device(device))
    sets = [read_labelled(task, network.sample_rate) for task in tasks]  # all, before the first is embedded
    sets = [labelled.limited(clips) if clips else labelled for labelled in sets]
    results = []
    for labelled in sets:
        with ProgressBar(total=len(labelled.clips), desc=labelled.name, unit="clip") as bar:
            embeddings = embed_task(
                network, labelled, cache=cache or cache_folder() / "probes", tick=bar.update
            )
        both = knn == linear
        results.append(run(embeddings, labelled, knn=knn or both, linear=linear or both, neighbors=neighbors))
    if as_json:
        rows = [dataclasses.asdict(result) for result in results]
        click.echo(json.dumps({"model": model, "probes": rows}, indent=2))
        return
    for line in _table(results):
        click.echo(line)


def _table(results: Sequence[ProbeResult]) -> list[str]:
    """Return a table with a line for each set, then their notes."""
    head = ("task", "metric", "kNN", "linear", "majority", "clips", "classes")
    rows: list[tuple[str, ...]] = [head]
    for result in results:
        scores = (
            "-" if value is None else f"{value:.3f}" for value in (result.knn, result.linear, result.majority)
        )
        rows.append((result.task, result.metric, *scores, str(result.clips), str(result.classes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    notes = [f"{result.task}: {'; '.join(result.notes)}" for result in results if result.notes]
    return [line.rstrip() for line in lines] + notes
