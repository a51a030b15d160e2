"""`hear-m2d finetune`: train a classifier and the encoder below it by a published recipe, seed by seed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hear_m2d.evaluation.linear.cli import (
    DEVICE,
    SPLIT_CSV,
    check_split_csvs,
    parse_seeds,
    read_set,
)
from hear_m2d.utils.commands import PartCommand, check_parent
from hear_m2d.utils.errors import InputError, unknown_name

INSTALL = "pip install 'hear-m2d[evaluation,pretrain]'"


@click.command(cls=PartCommand, needs=("sklearn", "scipy", "accelerate", "pydantic"), install=INSTALL)
@click.argument("task")
@click.option(
    "--model",
    default="",
    help="What load_model takes: a path, a name, an address.  [default: the package's own]",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of runs."
)
@click.option("--recipe", help="A name or a TOML file.  [default: the data set's, else default]")
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Override a field of the recipe."
)
@click.option("--seeds", default="43,44,45", show_default=True, callback=parse_seeds, help="One run each.")
@click.option("--fold", "folds", multiple=True, help="Only this fold; may be repeated.  [default: all]")
@SPLIT_CSV
@click.option("--clips", type=click.IntRange(min=1), help="At most so many clips of the set.  [default: all]")
@click.option("--compare", is_flag=True, help="Put the published figures beside the scores.")
@click.option("--dry-run", is_flag=True, help="Read everything, say what would be trained, and stop.")
@DEVICE
def finetune(
    task: str,
    model: str,
    out: Path,
    recipe: str | None,
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    folds: tuple[str, ...],
    split_csvs: dict[str, str],
    clips: int | None,
    compare: bool,
    dry_run: bool,
    device: str,
) -> None:
    """Fine-tune a model on TASK: a HEAR scene task, a CSV (file, label, split or fold), or NAME=ROOT.

    NAME=ROOT is a data set with its root folder, as for `hear-m2d linear`, which scores frozen embeddings.
    The same command continues an interrupted run. Reports the test score of the last and of the best epoch,
    and on which clips the best epoch was chosen.
    """
    import hear_m2d
    from hear_m2d.evaluation.finetune.recipe import read_recipe, recipe_names
    from hear_m2d.evaluation.finetune.results import report, summary
    from hear_m2d.evaluation.finetune.train import finetune_run, run_splits
    from hear_m2d.pretrain.training.distributed import STOPPED, StoppedError
    from hear_m2d.utils.device import pick_device
    from hear_m2d.utils.files import write_json
    from hear_m2d.utils.progress import ProgressBar

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("finetune is one process: start one command for each seed or fold (--seeds, --fold)")
    check_split_csvs(split_csvs, [task])
    check_parent(out, "--out")
    place = pick_device(device)
    labeled = read_set(task, split_csvs, hear_m2d.load_model(model).sample_rate)
    labeled = labeled.limited(clips) if clips else labeled
    name = recipe or (labeled.published if labeled.published in recipe_names() else "default")
    chosen = read_recipe(name, settings)
    splits = run_splits(labeled)
    for fold in folds:
        if fold not in [one.fold for one in splits]:
            raise InputError(unknown_name("fold", fold, [one.fold for one in splits]))
    splits = [one for one in splits if not folds or one.fold in folds]
    batches = [(chosen.epoch_clips or len(one.train)) // chosen.batch_size or 1 for one in splits]
    steps = len(seeds) * chosen.epochs * sum(batches)
    if dry_run:
        fields = [f"{field}={value}" for field, value in chosen.to_json().items() if field != "description"]
        click.echo(f"recipe {name}: {', '.join(fields)}")
        click.echo(
            f"{labeled.name}: {len(labeled.clips)} clips, {len(labeled.classes)} classes, "
            f"{len(splits)} folds x {len(seeds)} seeds, {steps} steps; "
            f"the best epoch is chosen on the {splits[0].selected_on} split"
        )
        return
    runs: list[dict[str, Any]] = []
    try:
        with ProgressBar(total=steps, desc=labeled.name, unit="step") as bar:
            for seed in seeds:
                for one in splits:
                    folder = out / f"seed-{seed}" / one.fold
                    run = finetune_run(
                        folder,
                        labeled,
                        one,
                        chosen,
                        seed=seed,
                        model_path=model,
                        device=place,
                        tick=bar.update,
                    )
                    runs.append(run)
    except StoppedError as stopped:
        click.echo(str(stopped), err=True)
        raise SystemExit(STOPPED) from None
    results = summary(runs, labeled, recipe=name, settings=chosen, model=model)
    write_json(out / "results.json", results)
    for line in report(results, compare=compare):
        click.echo(line)
    click.echo(f"written: {out / 'results.json'}; classifiers: {out}/seed-*/*/checkpoint.safetensors")
