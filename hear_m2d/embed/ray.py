"""`hear-m2d embed --ray`: the same rows, made on many machines by Ray Data, as a folder of Parquet files.

The sorted clips are cut into shards before anything is read. An actor with a model makes one shard at a time
and writes it under its own name, so that a shard made twice, because a machine died, is the same shard.
Audio, checkpoint and output must lie where every machine sees them under the same path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hear_m2d.embed.decode import Failure
from hear_m2d.embed.embedder import Embedder, ModelSpec
from hear_m2d.embed.inputs import Clip, Inputs
from hear_m2d.embed.npy import differing, read_state, said_plainly, write_failures, write_state
from hear_m2d.embed.run import Summary, nothing_embedded
from hear_m2d.utils.errors import InputError, MissingPackageError, WorkFailedError
from hear_m2d.utils.files import atomic_write_text, hold_folder, printable, remove_leftovers
from hear_m2d.utils.progress import ProgressBar

INSTALL = "pip install 'hear-m2d[ray]'"
STATE_FILE = ".embed.json"  # hidden: what reads a folder of Parquet files takes every visible file for one
_SHARD_CLIPS = (32, 512)  # fewest and most
_SHARDS = 1000  # how many to aim at between those
_IDENTITY = ("format", "sha256", "options", "root", "what", "clips", "names_sha256", "shard_clips")
_TRIES = 10  # of one shard: Ray itself restarts what dies, and tries again, without end
_CPUS = 4  # that one model on a CPU uses


def embed_on_ray(
    inputs: Inputs,
    spec: ModelSpec,
    out: str | os.PathLike[str],
    *,
    address: str,
    workers: int | None = None,
    force: bool = False,
    progress: bool = False,
    shard_clips: int | None = None,
) -> Summary:
    """Embed clips on a Ray cluster, or continue.

    Args:
        inputs: From :func:`~hear_m2d.embed.inputs.collect_inputs`; paths that hold on every machine.
        spec: The model, and what is asked of it.
        out: A folder for ``part-000000.parquet``, …, in the order of the names.
        address: ``auto`` (the cluster this machine belongs to), ``local`` (one made for this call), or
            ``HOST:PORT``.
        workers: Processes that decode beside each model; by default one.
        force: Begin anew, whatever lies there.
        progress: Show a progress bar.
        shard_clips: Clips in a file; by default 32 to 512.

    Returns:
        What was done; its seconds are those of the whole run, its waiting the mean over the models.

    Raises:
        ImportError: ray is not installed.
        ValueError: The target belongs to something else; no such model or option, or no cluster there.
        WorkFailedError: Nothing could be embedded, or writing failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError(f"--ray needs Ray. Type: {INSTALL}", name="ray")
    if workers == 0:
        raise InputError(
            "with --ray, --workers is at least 1: a decoder that crashes must not take the model along"
        )
    out = Path(os.path.abspath(out))  # noqa: PTH100
    facts = Embedder(dataclasses.replace(spec, device="cpu")).facts()
    # Relative to this process; the others may be somewhere else.
    if Path(spec.name).exists():
        spec = dataclasses.replace(spec, name=os.path.abspath(spec.name))  # noqa: PTH100
    shards = _Shards(out, inputs, facts, spec, shard_clips)
    start = time.perf_counter()
    with shards.hold(force=force):
        todo = shards.todo()
        with ProgressBar(total=len(inputs.clips), unit="clip", desc="embed", disable=not progress) as bar:
            before = sum(len(shards.clips(i)) for i in range(shards.count) if i not in todo)
            bar.update(before)
            notes = []
            if todo:
                with cluster_at(address) as ray:
                    for note in _make(ray, shards, todo, spec, workers or 1):
                        notes.append(note)
                        bar.update(note["files"])
        return shards.finish(notes, seconds=time.perf_counter() - start)


class _Shards:
    """The shards of one target, and their notes: a shard is done when its note is there."""

    def __init__(
        self, out: Path, inputs: Inputs, facts: Mapping[str, Any], spec: ModelSpec, size: int | None
    ) -> None:
        names = hashlib.sha256()
        for clip in inputs.clips:
            names.update(printable(clip.name).encode() + b"\n")
        count = len(inputs.clips)
        self.out = out
        self.inputs = inputs
        self.size = size or min(max(math.ceil(count / _SHARDS), _SHARD_CLIPS[0]), _SHARD_CLIPS[1])
        self.count = math.ceil(count / self.size)
        self.facts = dict(facts) | {"root": inputs.root}
        asked = {
            "what": spec.what,
            "clips": count,
            "names_sha256": names.hexdigest(),
            "shard_clips": self.size,
        }
        self.state = self.facts | asked

    @contextmanager
    def hold(self, *, force: bool) -> Iterator[None]:
        """Hold the folder, and see to it that what lies in it goes together with what will be written."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; with --ray, --out is a folder")
        with hold_folder(self.out):
            there = None if force else read_state(self.out / STATE_FILE)
            if there is None:
                others = sorted(p.name for p in self.out.iterdir() if not p.name.startswith("."))
                if others and not force:
                    raise InputError(
                        f"{self.out} holds other files ({others[0]}, …). Give another --out, or --force"
                    )
                self._remove_own()
                with said_plainly(self.out):
                    write_state(self.out / STATE_FILE, self.state)
            elif told := differing(there, self.state, _IDENTITY):
                raise InputError(
                    f"{self.out} holds other embeddings ({told}). Give another --out, or --force"
                )
            elif there.get("finished"):
                raise InputError(f"{self.out} is finished already; --force replaces it")
            remove_leftovers(self.out)
            for tries in self.out.glob(".part-*.tries"):  # counted for this call alone
                tries.unlink()
            yield

    def _remove_own(self) -> None:
        """Remove what such a run wrote; files of others stay."""
        for pattern in ("part-*.parquet", ".part-*", STATE_FILE):
            for path in self.out.glob(pattern):
                path.unlink()

    def clips(self, index: int) -> Sequence[Clip]:
        """Return a shard's clips."""
        return self.inputs.clips[index * self.size : (index + 1) * self.size]

    def todo(self) -> set[int]:
        """Return the numbers of the shards that are not done."""
        return {index for index in range(self.count) if not note_of(self.out, index).is_file()}

    def finish(self, made: Sequence[Mapping[str, Any]], *, seconds: float) -> Summary:
        """Write the list of failures, and note that the folder is finished."""
        notes = [json.loads(note_of(self.out, i).read_text(encoding="utf-8")) for i in range(self.count)]
        failures = [Failure(*entry) for note in notes for entry in note["failures"]]
        with said_plainly(self.out):
            report = write_failures(self.out.with_name(f"{self.out.name}.failed.csv"), failures)
        if not any(note["clips"] for note in notes):
            self._remove_own()
            (self.out / ".lock").unlink()
            with suppress(OSError):  # it holds files of others
                self.out.rmdir()
            raise nothing_embedded(failures, report)
        with said_plainly(self.out):
            write_state(self.out / STATE_FILE, self.state | {"finished": True})
        for index in range(self.count):
            note_of(self.out, index).unlink()
            note_of(self.out, index).with_suffix(".tries").unlink(missing_ok=True)
        remove_leftovers(self.out)  # of processes that were killed over a shard
        busy = sum(note["seconds"] for note in made)
        waited = sum(note["waited_s"] for note in made) / busy if busy else 0.0
        clips = sum(note["clips"] for note in made)
        return Summary(
            clips=clips,
            already=sum(note["clips"] for note in notes) - clips,
            audio_s=sum(note["audio_s"] for note in made),
            seconds=seconds,
            waited_s=waited * seconds,
            failures=tuple(failures),
            report=report,
            many_channels=sum(note["many_channels"] for note in made),
        )


def note_of(out: Path, index: int) -> Path:
    """Return where the note goes that says that a shard is done."""
    return out / f".part-{index:06d}.json"


class ShardEmbedder:
    """The actor: a model that makes one shard after another.

    Args:
        spec: The model, and what is asked of it.
        out: The folder.
        facts: What the model must say of itself.
        workers: Processes that decode.
    """

    def __init__(self, spec: ModelSpec, out: str, facts: Mapping[str, Any], workers: int) -> None:
        import ray

        self.node = ray.get_runtime_context().get_node_id()
        self.embedder = Embedder(spec)
        self.out = Path(out)
        self.facts = facts
        self.workers = workers
        here = self.embedder.facts()
        if told := differing(facts, here, ("sha256", "version")):
            raise InputError(f"this machine and the one that asks differ in checkpoint or version ({told})")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch; return their notes as JSON texts."""
        return {"note": [json.dumps(self._make(json.loads(text))) for text in batch["shard"]]}

    def _make(self, shard: Mapping[str, Any]) -> dict[str, Any]:
        from hear_m2d.embed.parquet import write_shard

        note = note_of(self.out, shard["index"])
        if note.is_file():  # made before, by one that died before it could say so
            done: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            return done
        clips = [Clip(*entry) for entry in shard["clips"]]
        with note.with_suffix(".tries").open("ab") as tries:
            tries.write(b".")
        if note.with_suffix(".tries").stat().st_size > _TRIES:
            raise WorkFailedError(
                f"{_TRIES} processes that made the shard from {clips[0].name} to {clips[-1].name} died, "
                f"perhaps for lack of memory"
            )
        path = self.out / f"part-{shard['index']:06d}.parquet"
        facts = write_shard(path, clips, self.embedder, self.facts, workers=self.workers)
        facts["node"] = self.node
        atomic_write_text(note, json.dumps(facts))
        return facts


@contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    """Connect to Ray, quietly; leave it as it was."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that this call starts reports to nobody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs to its own files; here come sentences
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        try:
            if match := re.fullmatch(r"([^/:]+):(\d+)", address):  # Ray itself would try for minutes
                socket.create_connection((match[1], int(match[2])), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"no Ray cluster answers at {address!r}: {told}") from error
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()


def _make(
    ray: Any, shards: _Shards, todo: set[int], spec: ModelSpec, workers: int
) -> Iterator[dict[str, Any]]:
    """Make shards on the cluster, and yield each one's note."""
    items = [
        {"shard": json.dumps({"index": i, "clips": [(c.name, c.path) for c in shards.clips(i)]})}
        for i in sorted(todo)
    ]
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if not spec.device.startswith("cpu") else 0
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(_CPUS, int(min((n for n in nodes if n), default=1))))
    models = gpus or max(1, int(resources.get("CPU", 1)) // cpus)
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardEmbedder,
        fn_constructor_args=(spec, os.fspath(shards.out), shards.facts, workers),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=models, max_tasks_in_flight_per_actor=2),
        num_gpus=1 if gpus else 0,
        num_cpus=1 if gpus else cpus,
    )
    try:
        for row in found.iter_rows():
            yield json.loads(row["note"])
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise WorkFailedError(sentence_of(error)) from error


def sentence_of(error: BaseException) -> str:
    """Return what an error on the cluster comes down to: the last line of its innermost traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the work on the cluster failed: {lines[-1] if lines else type(error).__name__}"
