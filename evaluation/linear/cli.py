"""`hear-m2d probe` and `hear-m2d linear`: how well frozen embeddings separate labeled clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_m2d.utils.commands import MODEL_OPTIONS, FiniteRange, PartCommand, aligned, check_parent
from hear_m2d.utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from hear_m2d.evaluation.linear.datasets import LabeledSet
    from hear_m2d.evaluation.linear.embeddings import Embedder
    from hear_m2d.evaluation.linear.probes import ProbeResult

INSTALL = "pip install 'hear-m2d[evaluation]'"
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
CLIPS = click.option(
    "--clips", type=click.IntRange(min=1), help="At most so many clips of a set.  [default: all]"
)
CACHE = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of embeddings.  [default: probes/ in the cache of hear-m2d]",
)


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
@CLIPS
@CACHE
@DEVICE
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
    from hear_m2d.evaluation.linear.embeddings import model_embedder
    from hear_m2d.evaluation.linear.probes import probe as run
    from hear_m2d.evaluation.linear.probes import read_labeled
    from hear_m2d.utils.device import pick_device

    network = hear_m2d.load_model(model).to(pick_device(device))
    sets = [read_labeled(task, network.sample_rate) for task in tasks]  # all, before the first is embedded
    sets = [labeled.limited(clips) if clips else labeled for labeled in sets]
    both = knn == linear
    results = []
    for labeled in sets:
        embeddings = _embed(model_embedder(network), labeled, cache)
        results.append(run(embeddings, labeled, knn=knn or both, linear=linear or both, neighbors=neighbors))
    if as_json:
        rows = [dataclasses.asdict(result) for result in results]
        click.echo(json.dumps({"model": model, "probes": rows}, indent=2))
        return
    for line in _probe_table(results):
        click.echo(line)


def _embed(embedder: Embedder, labeled: LabeledSet, cache: Path | None) -> Any:
    from hear_m2d.evaluation.linear.embeddings import embed_task
    from hear_m2d.utils.progress import ProgressBar

    with ProgressBar(total=len(labeled.clips), desc=labeled.name, unit="clip") as bar:
        return embed_task(embedder, labeled, cache=_cache(cache), tick=bar.update)


def _cache(cache: Path | None) -> Path:
    from hear_m2d.checkpoint.download import cache_folder

    return cache or cache_folder() / "probes"


def _probe_table(results: Sequence[ProbeResult]) -> list[str]:
    """Return a table with a line for each set, then their notes."""
    rows: list[tuple[str, ...]] = [("task", "metric", "kNN", "linear", "majority", "clips", "classes")]
    for result in results:
        scores = (
            "-" if value is None else f"{value:.3f}" for value in (result.knn, result.linear, result.majority)
        )
        rows.append((result.task, result.metric, *scores, str(result.clips), str(result.classes)))
    return [*aligned(rows), *(f"{r.task}: {'; '.join(r.notes)}" for r in results if r.notes)]


def parse_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read options of the form NAME=VALUE."""
    pairs = dict(value.partition("=")[::2] for value in values)
    if wrong := [name for name, value in pairs.items() if not value]:
        raise click.BadParameter(f"{wrong[0]!r} is not of the form NAME=VALUE", ctx, param)
    return pairs


SPLIT_CSV = click.option(
    "--split-csv",
    "split_csvs",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=FILE",
    help="The split of cremad, gtzan, voxforge or surge: a CSV with the columns file and split.",
)


def parse_seeds(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read different integers separated by commas."""
    try:
        seeds = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} must be integers separated by commas", ctx, param) from error
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise click.BadParameter(f"{value!r} must be different integers from 0 to {2**32 - 1}", ctx, param)
    return seeds


def check_split_csvs(split_csvs: Mapping[str, str], tasks: Sequence[str]) -> None:
    """Raise an InputError for a ``--split-csv`` of a data set that is not among the tasks."""
    for name in split_csvs:
        if not any(task.startswith(f"{name}=") for task in tasks):
            raise InputError(f"--split-csv {name}: no data set {name}=ROOT is given")


def read_set(task: str, split_csvs: dict[str, str], sample_rate: int) -> LabeledSet:
    """Read a task as the command line names it: NAME=ROOT of a data set, a HEAR task folder, or a CSV.

    Raises:
        FileNotFoundError: A file or folder does not exist.
        InputError: It cannot be used.
    """
    from hear_m2d.evaluation.linear.datasets import read_labeled
    from hear_m2d.evaluation.linear.named_sets import SETS, read_named

    name, _, root = task.partition("=")
    if root and (name in SETS or not Path(task).exists()):
        csv_path = split_csvs.get(name)
        return read_named(name, Path(root), Path(csv_path) if csv_path else None)
    return read_labeled(Path(task), sample_rate)


@click.command(cls=PartCommand, needs=("sklearn", "scipy"), install=INSTALL)
@click.argument("tasks", nargs=-1, required=True)
@click.option(
    "--model",
    help="What the module's load_model takes; of hear_m2d also a name or an address.  [default: the module's "
    "own]",
)
@click.option("--module", default="hear_m2d", show_default=True, help="Another module with the HEAR API.")
@MODEL_OPTIONS
@SPLIT_CSV
@click.option("--unit", type=FiniteRange(min=0.01, max=3600), help="Seconds to cut or pad clips of a CSV to.")
@click.option(
    "--learning-rate",
    type=FiniteRange(min=0, min_open=True),
    help="[default: 3e-5 for M2D, 3e-4 for any other model]",
)
@click.option("--seeds", default="42,43,44", show_default=True, callback=parse_seeds, help="One run each.")
@CLIPS
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the results as JSON.")
@click.option("--compare", is_flag=True, help="Put the published figures beside the score.")
@click.option("--dry-run", is_flag=True, help="Read the sets, say what would be computed, and stop.")
@CACHE
@DEVICE
def linear(
    tasks: tuple[str, ...],
    model: str | None,
    module: str,
    options: dict[str, Any],
    split_csvs: dict[str, str],
    unit: float | None,
    learning_rate: float | None,
    seeds: tuple[int, ...],
    clips: int | None,
    out: Path | None,
    compare: bool,
    dry_run: bool,
    cache: Path | None,
    device: str,
) -> None:
    """Score frozen embeddings by the M2D papers' linear evaluation.

    TASKS are HEAR scene tasks, CSV files (file, label, split or fold), or data sets with their root folder:
    esc50=ROOT, us8k=ROOT, spcv2=ROOT, vc1=ROOT, nsynth=ROOT; with --split-csv also cremad, gtzan, voxforge
    and surge. One linear layer, seeds 42, 43 and 44 with their 95 % interval, and kNN beside it. The quick
    check is `hear-m2d probe`.
    """
    from hear_m2d.evaluation.linear.protocol import SEEDS
    from hear_m2d.evaluation.linear.run import report_dry_run, run_linear
    from hear_m2d.utils.device import pick_device

    check_split_csvs(split_csvs, tasks)
    check_parent(out, "--out")
    check_parent(cache, "--cache")
    chosen = pick_device(device)
    embedder, default_rate = load_embedder(model, module, options, chosen)
    sets = []
    for task in tasks:  # all, before the first is embedded
        labeled = read_set(task, split_csvs, embedder.sample_rate)
        labeled = labeled.limited(clips) if clips else labeled
        if unit and not labeled.published:
            labeled = dataclasses.replace(labeled, unit_s=unit)
        sets.append(labeled)
    if repeated := {one.name for one in sets if [other.name for other in sets].count(one.name) > 1}:
        raise InputError(f"two tasks are called {sorted(repeated)[0]}: rename one of them")
    rate = learning_rate or default_rate
    changes = [f"learning rate {rate:g}"] if rate != default_rate else []
    changes += [f"seeds {', '.join(map(str, seeds))}"] if seeds != SEEDS else []
    if dry_run:
        for line in report_dry_run(sets, embedder, cache=_cache(cache), rate=rate, seeds=seeds):
            click.echo(line)
        return
    name = Path(model).stem if model else module
    lines = run_linear(
        sets,
        embedder,
        embed=lambda labeled: _embed(embedder, labeled, cache),
        model={"name": name, "module": module, "model": model, "options": options},
        rate=rate,
        seeds=seeds,
        device=chosen,
        out=out,
        compare=compare,
        changes=changes,
    )
    for line in lines:
        click.echo(line)


def load_embedder(
    model: str | None, module: str, options: dict[str, Any], device: torch.device
) -> tuple[Embedder, float]:
    """Return the embedder of a module's model, and the linear evaluation's published learning rate for it."""
    from hear_m2d.evaluation.linear.embeddings import model_embedder, module_embedder
    from hear_m2d.evaluation.linear.protocol import M2D_RATE, OTHER_RATE

    if module != "hear_m2d":
        path = Path(model) if model else None
        return module_embedder(module, path, options=options, device=device), OTHER_RATE
    import hear_m2d

    network = hear_m2d.load_model(model or "", **options).to(device)
    return model_embedder(network), M2D_RATE if network.config.kind.startswith("m2d") else OTHER_RATE
