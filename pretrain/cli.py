"""The commands `hear-m2d prepare` and `hear-m2d pretrain`."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_m2d.utils.commands import FiniteRange, PartCommand

if TYPE_CHECKING:
    from hear_m2d.pretrain.recipe import Recipe

INSTALL = "pip install 'hear-m2d[pretrain]'"  # for every command of this part
FOLDER = click.Path(path_type=Path)
COUNT, NUMBER = click.IntRange(min=1), click.IntRange(min=0)
SHOW_DEFAULTS = {"show_default": True}


def _part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read i/n: which part of how many."""
    if value is None:
        return None
    try:
        number, count = map(int, value.split("/"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a part: give i/n, such as 3/64") from None
    return number, count


@click.command(cls=PartCommand, needs=("pyarrow",), install=INSTALL, context_settings=SHOW_DEFAULTS)
@click.argument("source")
@click.argument("out", type=FOLDER)
@click.option(
    "--sample-rate", type=click.IntRange(1000, 192000), default=16000, help="Of the log-mel, hertz."
)
@click.option(
    "--max-clip-s", type=FiniteRange(min=1), default=30.0, help="Longer files are cut into equal pieces."
)
@click.option("--workers", type=COUNT, show_default="one for each processor", help="Processes.")
@click.option(
    "--shard", metavar="I/N", callback=_part, help="Make only the i-th of n parts, as one job of an array."
)
@click.option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: auto, local or HOST:PORT.")
@click.option("--dry-run", is_flag=True, help="List the source, print how many shards it gives, and stop.")
def prepare(
    source: str,
    out: Path,
    workers: int | None,
    shard: tuple[int, int] | None,
    ray: str | None,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Turn audio into log-mel shards for pretraining.

    SOURCE is a folder of audio files, a CSV list, tar archives, Parquet files with the bytes of audio files,
    or hf://datasets/owner/name. Files that cannot be used are listed in OUT/skipped.csv. The same command
    continues an interrupted run.
    """
    from hear_m2d.pretrain.data import prepare as work

    if ray is not None and (shard is not None or workers is not None):
        raise click.UsageError("--ray spreads the work itself: leave out --shard and --workers")
    if dry_run:
        task = work.list_work(source, out, **settings)
        todo = [] if task.is_finished() else task.todo(range(len(task.cuts)))
        size = int(task.source.sizes.sum()) / 2**30
        name = task.source.describe()["name"]
        click.echo(f"{task.source.kind} {name}: {len(task.source)} files, {size:.3f} GiB")
        click.echo(f"{len(task.cuts)} shards, {len(todo)} to be made")
        return
    if shard is not None:
        made = work.prepare_shard(source, out, shard=shard, workers=workers, progress=True, **settings)
        rest = f"{made.missing} of the whole set are missing"
        if not made.missing:
            rest = "no shard of the set is missing: type the command without --shard to finish it"
        click.echo(f"part {shard[0]}/{shard[1]}: {made.shards} shards are complete; {rest}")
        return
    summary = work.prepare(source, out, workers=workers, ray=ray, progress=True, **settings)
    if summary.already:
        click.echo(f"{out} is already prepared from this audio with these settings.")
    click.echo(
        f"{out}: {summary.clips} clips, {summary.hours:.2f} h, mean {summary.mean:.4f}, std {summary.std:.4f}"
    )
    if summary.report is not None:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        click.echo(f"skipped: {counts}; listed in {summary.report}")


@click.command(
    cls=PartCommand,
    needs=("accelerate", "pyarrow", "pydantic", "tensorboard"),
    install=INSTALL,
    context_settings=SHOW_DEFAULTS,
)
@click.option("--recipe", "recipe_name", required=True, help="A shipped recipe's name, or a TOML file.")
@click.option(
    "--data", "data_dir", type=FOLDER, help="A prepared folder, or what `hear-m2d prepare` takes as SOURCE."
)
@click.option("--out", type=FOLDER, help="The run's folder.")
@click.option("--init", help="Continue from this checkpoint's weights: a path, address or name.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set any field of the recipe, such as optimizer.base_lr=1e-3 or compile=true; may be repeated.",
)
@click.option("--noise", "noise_dir", type=FOLDER, help="To be mixed in: a prepared folder, or one of audio.")
@click.option("--features", type=FOLDER, help="M2D-S: a folder with NAME.npy for each file of the data.")
@click.option("--minutes", type=FiniteRange(min=0, min_open=True), help="Train about this long here.")
@click.option("--steps", type=NUMBER, help="Train this many steps; 0 writes the untrained network.")
@click.option("--epochs", type=COUNT, help="Train this many epochs, of clips // batch size steps.")
@click.option("--batch-size", type=COUNT, help="Clips per step.")
@click.option("--seed", type=NUMBER, help="Of weights, crops and masks.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
@click.option(
    "--micro-batch-size",
    type=NUMBER,
    default=0,
    show_default="on a GPU as many as fit, on a CPU all",
    help="Clips in one forward pass, at most.",
)
@click.option(
    "--workers",
    type=NUMBER,
    show_default="4 for a GPU, 0 for a CPU",
    help="Loader processes for each training process.",
)
@click.option("--log-every", type=COUNT, default=10, help="Steps.")
@click.option("--save-every", type=COUNT, default=500, help="Steps.")
@click.option("--keep-last", type=COUNT, default=2, help="States to keep, newest.")
@click.option("--keep-every", type=NUMBER, default=0, help="Keep the states at multiples of so many steps.")
@click.option(
    "--probe",
    "probe_paths",
    multiple=True,
    type=FOLDER,
    help="Probe now and then: a HEAR task folder, or a CSV of files and labels; may be repeated.",
)
@click.option("--probe-every", default="10epochs", help="Epochs or steps: 5, 5epochs, 500steps.")
@click.option("--probe-clips", type=COUNT, default=1000, help="Most, of each probe.")
@click.option("--track", multiple=True, help="A tracker besides TensorBoard (wandb, …); may be repeated.")
@click.option("--verify/--no-verify", default=True, help="First compare the data with its checksums.")
@click.option("--force", is_flag=True, help="Continue the run in OUT with other settings than it began with.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and its cost, and stop.")
def pretrain(
    recipe_name: str,
    data_dir: Path | None,
    out: Path | None,
    assignments: tuple[str, ...],
    noise_dir: Path | None,
    features: Path | None,
    minutes: float | None,
    probe_paths: tuple[Path, ...],
    probe_every: str,
    probe_clips: int,
    verify: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Pretrain a network and write OUT/checkpoint.safetensors.

    The same command continues a run that was interrupted. Options override the recipe's fields. Under
    torchrun or accelerate launch its processes share each batch.
    """
    from hear_m2d.pretrain.recipe import load_recipe

    fields = {name: options.pop(name) for name in ("init", "batch_size", "seed", "steps", "epochs")}
    if sum(length is not None for length in (minutes, fields["steps"], fields["epochs"])) > 1:
        raise click.UsageError("give one of --minutes, --steps and --epochs")
    overrides: dict[str, Any] = dict(map(_assignment, assignments))
    overrides |= {name: value for name, value in fields.items() if value is not None}
    recipe = load_recipe(recipe_name, overrides)
    if dry_run:
        if minutes is not None:
            raise click.UsageError("--minutes times real steps; with --dry-run give --steps or --epochs")
        for line in _dry_run(recipe, data_dir, options["device"]):
            click.echo(line)
        return
    if data_dir is None or out is None:
        raise click.UsageError("give --data and --out; only --dry-run does without them")

    from hear_m2d.pretrain.data.features import check_given
    from hear_m2d.pretrain.data.prepared import LogMelData
    from hear_m2d.pretrain.training import distributed
    from hear_m2d.pretrain.training.loop import train
    from hear_m2d.pretrain.training.probes import Probes, ProbeSettings
    from hear_m2d.pretrain.training.run_folder import RunFolder
    from hear_m2d.pretrain.training.trackers import check_trackers
    from hear_m2d.pretrain.training.warm_start import check_start

    processes = distributed.init_distributed()
    probes = ProbeSettings(probe_paths, probe_every, probe_clips)

    def check() -> None:
        """Check the settings before any audio is prepared, which may take days."""
        if RunFolder(out).known() is None:  # a resumed run does not need its initial checkpoint any more
            check_start(recipe)
        check_given(recipe, noise=noise_dir, features=features)
        check_trackers(options["track"])
        Probes(probes, sample_rate=recipe.sample_rate)
        _check_data(recipe, data_dir, noise_dir)

    def prepared(source: Path, name: str) -> LogMelData:
        folder = processes.run_on_main(
            lambda: _prepared(source, out / name, recipe.sample_rate, verify=verify)
        )
        return processes.run_everywhere(lambda: LogMelData(folder))

    try:
        with processes.abort_all_on_error():
            processes.run_on_main(check)
            noise = None if noise_dir is None else prepared(noise_dir, "noise")
            data = prepared(data_dir, "data")
            checkpoint = train(
                recipe, data, out, noise=noise, features=features, minutes=minutes, progress=True,
                probes=probes, **options,
            )  # fmt: skip
        distributed.end_distributed()
    except distributed.OtherProcessFailedError:
        raise SystemExit(1) from None  # the other process reports the error
    except distributed.StoppedError as stopped:
        if processes.is_main:
            click.echo(str(stopped), err=True)
        raise SystemExit(distributed.STOPPED) from None
    if processes.is_main:
        click.echo(f"checkpoint: {checkpoint}")


def _assignment(text: str) -> tuple[str, Any]:
    """Read FIELD=VALUE; the value is TOML, or else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text}: write FIELD=VALUE, such as optimizer.base_lr=1e-3")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _dry_run(recipe: Recipe, data_dir: Path | None, device: str) -> Iterator[str]:
    """Yield the estimate of a run; the number of clips is unknown if the audio is not prepared."""
    from glob import glob

    from hear_m2d.pretrain.data.prepared import LogMelData, is_prepared, require_frontend
    from hear_m2d.pretrain.data.sources import address_of
    from hear_m2d.pretrain.recipe import replace_fields
    from hear_m2d.pretrain.training.estimate import describe_plan, make_plan
    from hear_m2d.utils.device import pick_device

    clips = None
    if data_dir is not None and is_prepared(data_dir):
        data = LogMelData(data_dir)
        require_frontend(data, recipe.frontend)
        clips = len(data)
        if recipe.offline.source == "labels" and not recipe.offline.features:
            recipe = replace_fields(recipe, {"offline.features": len(data.labels)})
    elif data_dir and not (data_dir.exists() or address_of(data_dir) or glob(str(data_dir))):  # noqa: PTH207
        raise click.UsageError(f"{data_dir} does not exist")
    target_device = pick_device(device)
    yield from describe_plan(recipe, make_plan(recipe, clips=clips, device=target_device), target_device)


def _check_data(recipe: Recipe, data: Path, noise: Path | None) -> None:
    """Refuse data and noise that the recipe cannot use, as far as known before any is prepared."""
    from hear_m2d.pretrain.data.prepared import LogMelData, is_prepared, require_frontend, require_labels
    from hear_m2d.pretrain.data.sources import open_source

    for folder in (data, noise):
        if folder is not None and is_prepared(folder):
            require_frontend(LogMelData(folder), recipe.frontend)
    if recipe.offline.source == "labels":
        if is_prepared(data):
            require_labels(LogMelData(data).labels, data)
        elif open_source(data).kind == "folder":
            require_labels((), data)


def _prepared(source: Path, into: Path, sample_rate: int, *, verify: bool) -> Path:
    """Return a prepared folder, compared with its checksums; audio is prepared into the run's folder."""
    from hear_m2d.pretrain.data.prepare import prepare as run
    from hear_m2d.pretrain.data.prepared import LogMelData, is_prepared

    if not is_prepared(source):
        run(source, into, sample_rate=sample_rate, progress=True)
        source = into
    if verify:
        begun = time.perf_counter()
        if size := LogMelData(source).verify():
            seconds = time.perf_counter() - begun
            click.echo(
                f"{source}: {size / 2**30:.1f} GiB agree with their checksums ({seconds:.0f} s)", err=True
            )
    return source
