"""A prepared set, opened: what ``data.json`` says, and the shards, memory-mapped.

:class:`LogMelData` is one in a folder; ``remote.py`` has the one behind an address.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.data.shards import SCHEMA, split_label
from hear_m2d.utils.errors import InputError

DATA_FORMAT = 2
DATA_FILE, PLAN_FILE = "data.json", "plan.json"
_WHOLE = ["file", "start_s", "frames", "logmel"]  # columns without gaps
_SHARD_NAME = re.compile(r"shard-\d{5,}(-\d+)?\.arrow")


class Prepared:
    """What ``data.json`` says of a prepared set, wherever its shards are.

    Args:
        folder: A folder, or the address of one.
        summary: What its ``data.json`` says.

    Attributes:
        frontend: Every number of the log-mel.
        mean: Over every bin of every frame of the set.
        std: Likewise.
        hours: Hours of audio.
        labels: The classes, sorted; empty where clips have none.
        shards: Name, clips, bytes and ranges of dropped clips of each shard.

    Raises:
        ValueError: A field is missing or of another kind.
    """

    def __init__(self, folder: str | Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary
        try:
            self.frontend = FrontendConfig(**summary["frontend"])
            self.mean, self.std = float(summary["mean"]), float(summary["std"])
            self.hours = float(summary["hours"])
            self.labels: tuple[str, ...] = tuple(summary["labels"])
            self._lengths = [(int(frames), int(clips)) for frames, clips in summary["lengths"]]
            self.shards = [ShardFacts.read(line) for line in summary["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}/{DATA_FILE} is damaged: {error}. Prepare it anew.") from error
        self._classes = {label: number for number, label in enumerate(self.labels)}

    def __len__(self) -> int:
        """Return the number of clips."""
        raise NotImplementedError

    def frames(self, index: int) -> int:
        """Return the length of a clip."""
        raise NotImplementedError

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames): a read-only view of the file."""
        raise NotImplementedError

    def label(self, index: int) -> str:
        """Return a clip's label as the source has it, several separated by commas; empty for none."""
        raise NotImplementedError

    def count_shorter(self, frames: int) -> int:
        """Return how many clips are shorter than a crop of that many frames."""
        return sum(clips for length, clips in self._lengths if length < frames)

    def multi_hot(self, index: int) -> Tensor:
        """Return a clip's labels, (classes,): 1 where it has one."""
        target = torch.zeros(len(self.labels))
        for label in split_label(self.label(index)):
            target[self._classes[label]] = 1.0
        return target


class ShardFacts(NamedTuple):
    """A line of ``data.json`` on a shard; ``dropped`` are ranges of its clips that are not trained on."""

    file: str
    clips: int
    bytes: int
    dropped: tuple[tuple[int, int], ...]

    @staticmethod
    def read(line: Mapping[str, Any]) -> ShardFacts:
        """Read a line of ``data.json``, whose writer may be a stranger.

        Raises:
            ValueError: The name is none that ``prepare`` gives: it could lead out of the folder.
        """
        name = str(line["file"])
        if not _SHARD_NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of a shard")
        clips, dropped = int(line["clips"]), tuple((int(a), int(b)) for a, b in line["dropped"])
        edges = [0, *(edge for drop in dropped for edge in drop), clips]
        if edges != sorted(edges):
            raise InputError(f"the clips {dropped} of {clips} cannot be dropped")
        return ShardFacts(name, clips, int(line["bytes"]), dropped)

    @property
    def kept(self) -> int:
        """How many of its clips are trained on."""
        return self.clips - sum(last - first for first, last in self.dropped)


class OpenShard:
    """A shard, memory-mapped; only the clips that are trained on count.

    Args:
        path: The file.
        facts: What ``data.json`` says of it.
        mels: Bins of a frame.

    Raises:
        ValueError: It is missing, damaged, or not what ``data.json`` says.
    """

    def __init__(self, path: Path, facts: ShardFacts, mels: int) -> None:
        self.mels = mels
        self.values: list[NDArray[np.float16]] = []  # one flat view for each record batch
        self._label_columns: list[Any] = []
        self._origins: list[tuple[Any, Any]] = []
        lengths, starts, batches, rows = [], [], [], []
        for batch in _open_shard(path, facts.bytes, mels):
            logmel = batch.column("logmel")
            frames = batch.column("frames").to_numpy()
            lengths.append(frames)
            starts.append(logmel.offsets.to_numpy()[:-1])
            batches.append(np.full(len(frames), len(self.values)))
            rows.append(np.arange(len(frames)))
            self.values.append(logmel.values.to_numpy())
            self._label_columns.append(batch.column("label"))
            self._origins.append((batch.column("file"), batch.column("start_s")))
        clips = sum(map(len, lengths))
        if clips != facts.clips:
            raise InputError(
                f"{path} holds {clips} clips where {DATA_FILE} says {facts.clips}: "
                f"the folder is damaged. Prepare it anew."
            )
        kept = np.ones(clips, bool)
        for first, last in facts.dropped:
            kept[first:last] = False
        self.lengths, self.starts, self.batches, self.rows = (
            np.concatenate([*found, np.zeros(0)]).astype(np.int64)[kept]
            for found in (lengths, starts, batches, rows)
        )

    def label(self, clip: int) -> str:
        """Return a clip's label."""
        column = self._label_columns[self.batches[clip]]
        return column[int(self.rows[clip])].as_py() or ""

    def origin(self, clip: int) -> tuple[str, float]:
        """Return the name of a clip's file, and where in it the clip begins, seconds."""
        files, starts = self._origins[self.batches[clip]]
        row = int(self.rows[clip])
        return files[row].as_py(), starts[row].as_py()

    def logmel(self, clip: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames)."""
        frames, start = int(self.lengths[clip]), int(self.starts[clip])
        flat = self.values[self.batches[clip]][start : start + frames * self.mels]
        view: NDArray[np.float16] = flat.reshape(frames, self.mels).T
        return view


class LogMelData(Prepared):
    """A folder written by ``hear-m2d prepare``, opened: shards of float16 log-mel, memory-mapped.

    Args:
        folder: The folder.

    Attributes:
        lengths: Frames of each clip, (clips,).

    Raises:
        ValueError: It is no such folder, not finished, damaged, or of another format.
    """

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        super().__init__(Path(folder), read_summary(Path(folder)))
        self._open = [
            OpenShard(self.folder / facts.file, facts, self.frontend.n_mels) for facts in self.shards
        ]
        self._firsts = np.cumsum([0, *(len(shard.lengths) for shard in self._open)])
        self.lengths: NDArray[np.int64] = np.concatenate([shard.lengths for shard in self._open])
        # Which shard, and which clip of it: looked up for every crop.
        self._shard = np.repeat(np.arange(len(self._open)), np.diff(self._firsts))

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[LogMelData], tuple[Path]]:
        return LogMelData, (self.folder,)  # a loader process that is spawned maps the files itself

    def frames(self, index: int) -> int:
        """Return the length of a clip."""
        return int(self.lengths[index])

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames): a read-only view of the file."""
        shard, clip = self._place(index)
        return shard.logmel(clip)

    def label(self, index: int) -> str:
        """Return a clip's label as the source has it."""
        shard, clip = self._place(index)
        return shard.label(clip)

    def origin(self, index: int) -> tuple[str, float]:
        """Return the name of a clip's file, and where in it the clip begins, seconds."""
        shard, clip = self._place(index)
        return shard.origin(clip)

    def count_shorter(self, frames: int) -> int:
        """Return how many clips are shorter than a crop of that many frames."""
        return int((self.lengths < frames).sum())

    def _place(self, index: int) -> tuple[OpenShard, int]:
        number = self._shard[index]
        return self._open[number], index % len(self) - int(self._firsts[number])


def open_data(place: str | Path) -> Prepared:
    """Open a prepared set: a folder, or the address of one, which is then streamed.

    Args:
        place: A path, or any address that fsspec knows: ``http://…``, ``s3://…``.

    Raises:
        ValueError: It is no prepared set, or it is damaged.
        ConnectionError: It cannot be reached.
    """
    if address := address_of(place):
        from hear_m2d.pretrain.data.remote import RemoteData

        return RemoteData(address)
    return LogMelData(place)


def read_facts(place: str | Path) -> Prepared:
    """Return what a prepared set says of itself, as :func:`open_data` does, without opening its shards."""
    return open_data(place) if address_of(place) else Prepared(place, read_summary(Path(place)))


def address_of(place: str | Path) -> str:
    """Return the address that a text means, also where a path ate one of its slashes; empty for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.+)", str(place))  # one letter is a drive
    if found is None:
        return ""
    return f"{found[1]}:{'//' if found[2] or found[1] != 'file' else '///'}{found[3]}"


def require_frontend(data: Prepared, wanted: FrontendConfig, whose: str = "the recipe") -> None:
    """Refuse a set that was made with another front end.

    Raises:
        ValueError: It was; each field that differs is named with both values.
    """
    here, asked = dataclasses.asdict(data.frontend), dataclasses.asdict(wanted)
    if told := "; ".join(f"{name}: {here[name]} there, {asked[name]} asked" for name in here
                         if here[name] != asked[name]):  # fmt: skip
        raise InputError(
            f"{data.folder} was prepared with another front end than {whose} wants ({told}). Type: hear-m2d "
            f"prepare AUDIO OUT --sample-rate {wanted.sample_rate}, or give the folder of audio as --data"
        )


def require_labels(labels: Sequence[str], place: str | Path) -> None:
    """Refuse a set without labels.

    Raises:
        ValueError: There are none.
    """
    if not labels:
        raise InputError(
            f"{place} has no labels: prepare it from a list with a column `label` "
            f"(docs/data.md has the other ways)"
        )


def is_prepared(folder: Path) -> bool:
    """Return whether ``hear-m2d prepare`` wrote here, finished or not; a data set may own a data.json too.

    An address is taken for one that it wrote.
    """
    if address := address_of(folder):
        return not address.startswith("hf://")  # which is a source
    for name, key in ((DATA_FILE, "frontend"), (PLAN_FILE, "format")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and key in found:
            return True
    return any(folder.glob("shard-*.arrow")) if folder.is_dir() else False


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what a prepared folder says about itself.

    Args:
        folder: The folder.

    Raises:
        ValueError: It is not a finished one of this format.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        if (folder / PLAN_FILE).is_file():
            raise InputError(f"{folder} is half prepared. The same `hear-m2d prepare` command finishes it.")
        raise InputError(
            f"{folder} is no prepared folder, it has no {DATA_FILE}. "
            f"Type: hear-m2d prepare AUDIO_DIR {folder}"
        )
    return parse_summary(path.read_bytes(), path)


def parse_summary(content: bytes, where: str | Path) -> dict[str, Any]:
    """Return what the bytes of a ``data.json`` say.

    Raises:
        ValueError: They are damaged, or of a format that is not known.
    """
    try:
        summary = json.loads(content)
        number = summary["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is damaged: {error}. Prepare the folder anew.") from error
    if number != DATA_FORMAT:
        raise InputError(
            f"{where} has format {number}; this version reads {DATA_FORMAT}. Prepare the folder anew."
        )
    return cast(dict[str, Any], summary)


def _open_shard(path: Path, size: int, mels: int) -> Iterator[Any]:
    """Yield the record batches of a shard, without copying."""
    if not path.is_file() or (actual := path.stat().st_size) != size:
        what = f"has {actual} bytes instead of {size}" if path.is_file() else "is missing"
        raise InputError(f"{path} {what}: the folder is damaged. Prepare it anew.")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            batch.validate(full=True)  # offsets that lie would read beyond the file
            if batch.schema != SCHEMA or any(column.null_count for column in batch.select(_WHOLE).columns):
                raise pa.ArrowInvalid("its columns are not those of a shard")
            if (pc.list_value_length(batch["logmel"]).to_numpy() != batch["frames"].to_numpy() * mels).any():
                raise pa.ArrowInvalid(f"a clip is not of {mels} mel bins a frame")
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged: {error}. Prepare the folder anew.") from error
