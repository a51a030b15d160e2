"""The commands `hear-m2d prepare` and `hear-m2d pretrain`."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_m2d.utils.commands import PartCommand

if TYPE_CHECKING:
    from hear_m2d.pretrain.recipe import Recipe

INSTALL = "pip install 'hear-m2d[pretrain]'"  # for every command of this part


def _part(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read i/n: which part of how many."""
    if value is None:
        return None
    try:
        number, count = map(int, value.split("/"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a part: give i/n, such as 3/64") from None
    return number, count


@click.command(cls=PartCommand, needs=("pyarrow",), install=INSTALL)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--sample-rate",
    type=click.IntRange(min=1000, max=192000),
    default=16000,
    show_default=True,
    help="Of the log-mel, hertz.",
)
@click.option(
    "--max-clip-s",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Longer files are cut into equal pieces.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one for each processor]")
@click.option(
    "--shard", metavar="I/N", callback=_part, help="Make only the i-th of n parts, as one job of an array."
)
@click.option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: auto, local or HOST:PORT.")
@click.option("--dry-run", is_flag=True, help="List the source, print how many shards it gives, and stop.")
def prepare(
    source: str,
    out: Path,
    sample_rate: int,
    max_clip_s: float,
    workers: int | None,
    shard: tuple[int, int] | None,
    ray: str | None,
    dry_run: bool,
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
        task = work.list_work(source, out, sample_rate=sample_rate, max_clip_s=max_clip_s)
        todo = [] if task.is_finished() else task.todo(range(len(task.cuts)))
        kind, name = task.source.kind, task.source.describe()["name"]
        size = int(task.source.sizes.sum()) / 2**30
        click.echo(f"{kind} {name}: {len(task.source)} files, {size:.3f} GiB")
        click.echo(f"{len(task.cuts)} shards, {len(todo)} to be made")
        return
    if shard is not None:
        made = work.prepare_shard(
            source, out, shard=shard, sample_rate=sample_rate, max_clip_s=max_clip_s, workers=workers,
            progress=True,
        )  # fmt: skip
        rest = f"{made.missing} of the whole set are missing" if made.missing else (
            "no shard of the set is missing: type the command without --shard to finish it"
        )  # fmt: skip
        click.echo(f"part {shard[0]}/{shard[1]}: {made.shards} shards are complete; {rest}")
        return
    summary = work.prepare(
        source, out, sample_rate=sample_rate, max_clip_s=max_clip_s, workers=workers, ray=ray, progress=True
    )
    if summary.already:
        click.echo(f"{out} is already prepared from this audio with these settings.")
    click.echo(
        f"{out}: {summary.clips} clips, {summary.hours:.2f} h, mean {summary.mean:.4f}, std {summary.std:.4f}"
    )
    if summary.report is not None:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        click.echo(f"skipped: {counts}; listed in {summary.report}")


@click.command(cls=PartCommand, needs=("accelerate", "pyarrow", "pydantic", "tensorboard"), install=INSTALL)
@click.option("--recipe", "recipe_name", required=True, help="A shipped recipe's name, or a TOML file.")
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    help="A folder or address that `hear-m2d prepare` wrote, or any source that it takes, prepared first.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--init", help="Continue from this checkpoint's weights: a path, address or name.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set any field of the recipe, such as optimizer.base_lr=1e-3 or compile=true; may be repeated.",
)
@click.option(
    "--noise",
    "noise_dir",
    type=click.Path(path_type=Path),
    help="To be mixed in: a folder that `hear-m2d prepare` wrote, or one of audio, which is prepared first.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="M2D-S: a folder with NAME.npy for each file of the data.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Train about this long here.")
@click.option(
    "--steps", type=click.IntRange(min=0), help="Train this many steps; 0 writes the untrained network."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Train this many epochs, of clips // batch size steps."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Clips per step.")
@click.option("--seed", type=click.IntRange(min=0), help="Of weights, crops and masks.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option(
    "--micro-batch-size",
    type=click.IntRange(min=0),
    default=0,
    help="Clips in one forward pass, at most.  [default: on a GPU as many as fit, on a CPU all]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Loader processes for each training process.  [default: 4 for a GPU, 0 for a CPU]",
)
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps.")
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps.")
@click.option(
    "--keep-last", type=click.IntRange(min=1), default=2, show_default=True, help="States to keep, newest."
)
@click.option(
    "--keep-every",
    type=click.IntRange(min=0),
    default=0,
    help="Keep the states at multiples of so many steps for good.  [default: none]",
)
@click.option(
    "--probe",
    "probe_places",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Probe now and then: a HEAR task folder, or a CSV of files and labels; may be repeated.",
)
@click.option(
    "--probe-every", default="10epochs", show_default=True, help="Epochs or steps: 5, 5epochs, 500steps."
)
@click.option(
    "--probe-clips", type=click.IntRange(min=1), default=1000, show_default=True, help="Most, of each probe."
)
@click.option(
    "--track", multiple=True, help="A tracker besides TensorBoard: wandb, mlflow, …; may be repeated."
)
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="First compare the data with its checksums."
)
@click.option("--force", is_flag=True, help="Continue the run in OUT with other settings than it began with.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what it takes, and stop.")
def pretrain(
    recipe_name: str,
    data_dir: Path | None,
    out: Path | None,
    init: str | None,
    assignments: tuple[str, ...],
    noise_dir: Path | None,
    features: Path | None,
    minutes: float | None,
    steps: int | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int | None,
    device: str,
    micro_batch_size: int,
    workers: int | None,
    log_every: int,
    save_every: int,
    keep_last: int,
    keep_every: int,
    probe_places: tuple[Path, ...],
    probe_every: str,
    probe_clips: int,
    track: tuple[str, ...],
    verify: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Pretrain a network and write OUT/checkpoint.safetensors.

    The same command continues a run that was interrupted. Options override the recipe's fields. Under
    torchrun or accelerate launch its processes share each batch.
    """
    from hear_m2d.pretrain.recipe import load_recipe

    if sum(length is not None for length in (minutes, steps, epochs)) > 1:
        raise click.UsageError("give one of --minutes, --steps and --epochs")
    overrides: dict[str, Any] = dict(map(_assignment, assignments))
    options = {"init": init, "batch_size": batch_size, "seed": seed, "steps": steps, "epochs": epochs}
    overrides |= {name: value for name, value in options.items() if value is not None}
    recipe = load_recipe(recipe_name, overrides)
    if dry_run and minutes is not None:
        raise click.UsageError("--minutes times real steps; with --dry-run give --steps or --epochs")
    if dry_run:
        for line in _dry_run(recipe, data_dir, device):
            click.echo(line)
        return
    if data_dir is None or out is None:
        raise click.UsageError("give --data and --out; only --dry-run does without them")

    from hear_m2d.pretrain.data.features import check_given
    from hear_m2d.pretrain.data.prepared import LogMelData
    from hear_m2d.pretrain.objectives.build import check_start
    from hear_m2d.pretrain.training.distributed import (
        STOPPED,
        OtherProcessFailedError,
        StoppedError,
        end_distributed,
        init_distributed,
    )
    from hear_m2d.pretrain.training.loop import train
    from hear_m2d.pretrain.training.probes import check_probes
    from hear_m2d.pretrain.training.run_folder import RunFolder
    from hear_m2d.pretrain.training.trackers import check_trackers

    processes = init_distributed()
    try:
        with processes.abort_all_on_error():
            # Check the settings before any audio is prepared, which may take days.
            begun = processes.run_on_main(RunFolder(out).known)
            check_given(recipe, noise=noise_dir, features=features)
            if begun is None:  # a resumed run does not need its initial checkpoint any more
                processes.run_on_main(lambda: check_start(recipe))
            check_trackers(track)
            probes = processes.run_on_main(
                lambda: check_probes(
                    probe_places, every=probe_every, clips=probe_clips, sample_rate=recipe.sample_rate
                )
            )
            processes.run_on_main(lambda: _check_data(recipe, data_dir, noise_dir))
            noisy = processes.run_on_main(
                lambda: noise_dir and _prepared(noise_dir, out / "noise", recipe.sample_rate, verify=verify)
            )
            prepared = processes.run_on_main(
                lambda: _prepared(data_dir, out / "data", recipe.sample_rate, verify=verify)
            )
            checkpoint = train(
                recipe,
                processes.run_everywhere(lambda: LogMelData(prepared)),
                out,
                noise=processes.run_everywhere(lambda: None if noisy is None else LogMelData(noisy)),
                features=features,
                minutes=minutes,
                force=force,
                device=device,
                log_every=log_every,
                save_every=save_every,
                keep_last=keep_last,
                keep_every=keep_every,
                workers=workers,
                micro_batch_size=micro_batch_size,
                progress=True,
                probes=probes,
                track=track,
            )
        end_distributed()
    except OtherProcessFailedError:
        raise SystemExit(1) from None  # the other process reports the error
    except StoppedError as stopped:
        if processes.is_main:
            click.echo(str(stopped), err=True)
        raise SystemExit(STOPPED) from None
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

    from hear_m2d.pretrain.data.prepared import SetInfo, is_prepared, require_frontend
    from hear_m2d.pretrain.data.sources import address_of
    from hear_m2d.pretrain.recipe import replace_fields
    from hear_m2d.pretrain.training.estimate import describe_plan, make_plan
    from hear_m2d.utils.device import pick_device

    clips = None
    if data_dir is not None:
        if is_prepared(data_dir):
            data = SetInfo(data_dir)
            require_frontend(data, recipe.frontend)
            clips = data.clips
            if recipe.offline.source == "labels" and not recipe.offline.features:
                recipe = replace_fields(recipe, {"offline.features": len(data.labels)})
        elif not (data_dir.exists() or address_of(data_dir) or glob(str(data_dir))):  # noqa: PTH207
            raise click.UsageError(f"{data_dir} does not exist")
    target_device = pick_device(device)
    yield from describe_plan(recipe, make_plan(recipe, clips=clips, device=target_device), target_device)


def _check_data(recipe: Recipe, data: Path, noise: Path | None) -> None:
    """Refuse data and noise that the recipe cannot use, as far as known before any is prepared."""
    from hear_m2d.pretrain.data.prepared import SetInfo, is_prepared, require_frontend, require_labels
    from hear_m2d.pretrain.data.sources import open_source

    labels = recipe.offline.source == "labels"
    if is_prepared(data):
        prepared = SetInfo(data)
        require_frontend(prepared, recipe.frontend)
        if labels:
            require_labels(prepared.labels, data)
    elif labels and open_source(data).kind == "folder":
        require_labels((), data)
    if noise is not None and is_prepared(noise):
        require_frontend(SetInfo(noise), recipe.frontend)


def _prepared(source: Path, into: Path, sample_rate: int, *, verify: bool) -> Path:
    """Return a prepared folder, compared with its checksums; audio is prepared into the run's folder."""
    from hear_m2d.pretrain.data.prepare import prepare as run
    from hear_m2d.pretrain.data.prepared import LogMelData, is_prepared

    if not is_prepared(source):
        run(source, into, sample_rate=sample_rate, progress=True)
        source = into
    if verify:
        begun = time.perf_counter()
        size = LogMelData(source).verify()
        if size:
            seconds = time.perf_counter() - begun
            click.echo(
                f"{source}: {size / 2**30:.1f} GiB agree with their checksums ({seconds:.0f} s)", err=True
            )
    return source
