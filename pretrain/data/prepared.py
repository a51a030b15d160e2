"""A prepared set: the content of ``data.json``, and the memory-mapped shards."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.data.shards import SCHEMA, file_crc32
from hear_m2d.utils.device import processors
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import split_labels

DATA_FORMAT = 2
DATA_FILE, PLAN_FILE = "data.json", "plan.json"
_SHARD_NAME = re.compile(r"shard-\d{5,}(-\d+)?\.arrow")
_NOT_NULL = ["file", "start_s", "frames", "logmel"]


class ShardInfo(NamedTuple):
    """One line of ``data.json`` about a shard.

    Attributes:
        file: Its name.
        clips: Clips in it.
        bytes: Its size.
        crc32: Its checksum; empty in sets of an earlier version.
        dropped: Ranges of clips that are not trained on: duplicates, in sets of an earlier version.
    """

    file: str
    clips: int
    bytes: int
    crc32: str
    dropped: tuple[tuple[int, int], ...]

    @staticmethod
    def parse(line: Mapping[str, Any]) -> ShardInfo:
        """Read a line. The set may come from an unknown source: the name must not lead out of the folder."""
        name = str(line["file"])
        if not _SHARD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a shard")
        clips, dropped = int(line["clips"]), tuple((int(a), int(b)) for a, b in line.get("dropped", ()))
        edges = [0, *(edge for drop in dropped for edge in drop), clips]
        if edges != sorted(edges):
            raise ValueError(f"the clips {dropped} of {clips} cannot be dropped")
        return ShardInfo(name, clips, int(line["bytes"]), str(line.get("crc32", "")), dropped)


class SetInfo:
    """The content of a prepared set's ``data.json``; its shards are not opened.

    Args:
        folder: A folder that ``hear-m2d prepare`` finished.

    Attributes:
        summary: ``data.json`` itself.
        frontend: Every number of the log-mel.
        mean: Over every bin of every frame of the set.
        std: Standard deviation over the same.
        hours: Hours of audio.
        clips: Number of clips.
        labels: The classes, sorted; empty if clips have none.
        shards: Its shards.

    Raises:
        InputError: There is no such set, it is unfinished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.summary = read_summary(self.folder)
        try:
            self.frontend = FrontendConfig(**self.summary["frontend"])
            self.mean, self.std = float(self.summary["mean"]), float(self.summary["std"])
            self.hours, self.clips = float(self.summary["hours"]), int(self.summary["clips"])
            self.labels: tuple[str, ...] = tuple(self.summary["labels"])
            self.shards = [ShardInfo.parse(line) for line in self.summary["shards"]]
            self._classes = {unicodedata.normalize("NFC", text): n for n, text in enumerate(self.labels)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.folder / DATA_FILE} is damaged: {error}. Prepare it again") from error
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise InputError(
                f"{self.folder / DATA_FILE} has mean {self.mean} and standard deviation {self.std}: a file "
                f"with far too large samples is in the set. Prepare it again; such files are now left out"
            )


class LogMelData(SetInfo):
    """A prepared set with its shards of float16 log-mel, memory-mapped.

    Args:
        folder: A folder that ``hear-m2d prepare`` finished.

    Attributes:
        lengths: Frames of each clip, (clips,).

    Raises:
        InputError: There is no such set, it is unfinished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._open = [_OpenShard(self.folder / info.file, info, self.frontend.n_mels) for info in self.shards]
        self._firsts = np.cumsum([0, *(len(shard.lengths) for shard in self._open)])
        self.lengths: NDArray[np.int64] = np.concatenate([shard.lengths for shard in self._open])
        # The shard of each clip, which every crop needs.
        self._shard_of = np.repeat(np.arange(len(self._open)), np.diff(self._firsts))

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[LogMelData], tuple[Path]]:
        return LogMelData, (self.folder,)  # a spawned loader process maps the files itself

    def frames(self, index: int) -> int:
        """Return the length of a clip."""
        return int(self.lengths[index])

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames): a read-only view of the file."""
        shard, clip = self._find(index)
        return shard.logmel(clip)

    def label(self, index: int) -> str:
        """Return a clip's cell of labels (``utils/listing.py``); empty if it has none."""
        shard, clip = self._find(index)
        return shard.label(clip)

    def multi_hot(self, index: int) -> Tensor:
        """Return a clip's labels, (classes,): 1 where it has one.

        Raises:
            InputError: A label of the clip is not one of the set's.
        """
        target = torch.zeros(len(self.labels))
        for label in split_labels(self.label(index)):
            if label not in self._classes:
                raise InputError(
                    f"{self.describe_clip(index)} has the label {label!r}, which {DATA_FILE} does not list: "
                    f"the folder is damaged. Prepare it again"
                )
            target[self._classes[label]] = 1.0
        return target

    def origin(self, index: int) -> tuple[str, float]:
        """Return the name of a clip's file, and the second in it at which the clip begins."""
        shard, clip = self._find(index)
        return shard.origin(clip)

    def count_shorter(self, frames: int) -> int:
        """Return how many clips are shorter than a crop of that many frames."""
        return int((self.lengths < frames).sum())

    def count_unlabeled(self) -> int:
        """Return how many clips have no label."""
        return sum(not split_labels(self.label(index)) for index in range(len(self)))

    def describe_clip(self, index: int) -> str:
        """Return the place of a clip: its shard, its row there, its file."""
        shard, clip = self._find(index)
        name, start_s = shard.origin(clip)
        return f"clip {shard.row(clip)} of {shard.path} (from {name}, at {start_s:g} s)"

    def find_non_finite(self, clips: Iterable[int]) -> str:
        """Describe the first of some clips with values that are not finite; empty if there is none."""
        for index in dict.fromkeys(clips):
            if not np.isfinite(self.logmel(index)).all():
                return self.describe_clip(index)
        return ""

    def verify(self) -> int:
        """Compare each shard with the checksum that ``prepare`` wrote.

        Returns:
            Bytes compared: 0 for a set of an earlier version, which has no checksums.

        Raises:
            InputError: A shard differs.
        """
        shards = [info for info in self.shards if info.crc32]
        with ThreadPoolExecutor(processors()) as pool:
            found = pool.map(lambda info: file_crc32(self.folder / info.file), shards)
            for info, crc32 in zip(shards, found, strict=True):
                if crc32 != info.crc32:
                    raise InputError(
                        f"{self.folder / info.file} is damaged: its checksum is {crc32}, {DATA_FILE} says "
                        f"{info.crc32}. Copy the folder again, or prepare it again"
                    )
        return sum(info.bytes for info in shards)

    def _find(self, index: int) -> tuple[_OpenShard, int]:
        number = self._shard_of[index]
        return self._open[number], index % len(self) - int(self._firsts[number])


@dataclass(frozen=True)
class _Rows:
    """A record batch of a shard."""

    values: NDArray[np.float16]  # of all its clips, flat
    batch: Any


class _OpenShard:
    """A shard, memory-mapped, without its dropped clips."""

    def __init__(self, path: Path, info: ShardInfo, mels: int) -> None:
        self.path, self.mels = path, mels
        self._rows: list[_Rows] = []
        lengths, starts, batches, rows = [], [], [], []
        for batch in _read_batches(path, info.bytes, mels):
            logmel = batch.column("logmel")
            count = len(logmel)
            lengths.append(batch.column("frames").to_numpy())
            starts.append(logmel.offsets.to_numpy()[:-1])
            batches.append(np.full(count, len(self._rows)))
            rows.append(np.arange(count))
            self._rows.append(_Rows(logmel.values.to_numpy(), batch))
        clips = sum(map(len, lengths))
        if clips != info.clips:
            raise InputError(
                f"{path} holds {clips} clips, {DATA_FILE} says {info.clips}: the folder is damaged. "
                f"Prepare it again"
            )
        kept = np.ones(clips, bool)
        for first, last in info.dropped:
            kept[first:last] = False
        self._kept = np.flatnonzero(kept)
        self.lengths, self._starts, self._batches, self._row = (
            np.concatenate([*parts, np.zeros(0)]).astype(np.int64)[kept]
            for parts in (lengths, starts, batches, rows)
        )

    def row(self, clip: int) -> int:
        """Return a clip's row in the shard."""
        return int(self._kept[clip])

    def label(self, clip: int) -> str:
        """Return a clip's label."""
        return self._cell("label", clip) or ""

    def origin(self, clip: int) -> tuple[str, float]:
        """Return the name of a clip's file, and the second at which the clip begins."""
        return self._cell("file", clip), self._cell("start_s", clip)

    def logmel(self, clip: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames)."""
        frames, start = int(self.lengths[clip]), int(self._starts[clip])
        flat = self._rows[self._batches[clip]].values[start : start + frames * self.mels]
        view: NDArray[np.float16] = flat.reshape(frames, self.mels).T
        return view

    def _cell(self, column: str, clip: int) -> Any:
        return self._rows[self._batches[clip]].batch.column(column)[int(self._row[clip])].as_py()


def _read_batches(path: Path, size: int, mels: int) -> Iterator[Any]:
    """Yield the record batches of a shard, without copying."""
    if not path.is_file() or (actual := path.stat().st_size) != size:
        what = f"has {actual} bytes instead of {size}" if path.is_file() else "is missing"
        raise InputError(f"{path} {what}: the folder is damaged. Prepare it again")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            batch.validate(full=True)  # wrong offsets would read outside the file
            # An earlier version has one column more.
            if any(batch.schema.field(field.name) != field for field in SCHEMA):
                raise pa.ArrowInvalid("its columns are not those of a shard")
            if any(batch.column(name).null_count for name in _NOT_NULL):
                raise pa.ArrowInvalid("a cell is empty")
            if (pc.list_value_length(batch["logmel"]).to_numpy() != batch["frames"].to_numpy() * mels).any():
                raise pa.ArrowInvalid(f"a clip does not have {mels} mel bins a frame")
            yield batch
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}. Prepare the folder again") from error


def require_frontend(data: SetInfo, wanted: FrontendConfig) -> None:
    """Refuse a set that was made with another front end.

    Raises:
        InputError: It was made with another front end; the message names each differing field with both
            values.
    """
    here, asked = dataclasses.asdict(data.frontend), dataclasses.asdict(wanted)
    differing = [name for name in here if here[name] != asked[name]]
    if differing:
        raise InputError(
            f"{data.folder} was prepared with another front end than the recipe's ("
            + "; ".join(f"{name}: the data has {here[name]}, the recipe {asked[name]}" for name in differing)
            + f"). Type: hear-m2d prepare AUDIO OUT --sample-rate {wanted.sample_rate}, or give the "
            f"folder of audio as --data"
        )


def require_labels(labels: Sequence[str], place: str | Path) -> None:
    """Refuse a set without labels.

    Raises:
        InputError: There are none.
    """
    if not labels:
        raise InputError(
            f"{place} has no labels: prepare it from a list with a column `label` (docs/data.md has the "
            f"other ways)"
        )


def is_prepared(folder: Path) -> bool:
    """Return whether ``hear-m2d prepare`` wrote here, finished or not; others may write a data.json, too."""
    for name, key in ((DATA_FILE, "frontend"), (PLAN_FILE, "format")):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and key in content:
            return True
    return any(folder.glob("shard-*.arrow")) if folder.is_dir() else False


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a prepared set's ``data.json``.

    Raises:
        InputError: The folder is not a finished set of this format.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        if (folder / PLAN_FILE).is_file():
            raise InputError(f"{folder} is half prepared. The same `hear-m2d prepare` command finishes it")
        raise InputError(
            f"{folder} is not a prepared folder, it has no {DATA_FILE}. "
            f"Type: hear-m2d prepare AUDIO_DIR {folder}"
        )
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        number = summary["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Prepare the folder again") from error
    if number != DATA_FORMAT:
        raise InputError(
            f"{path} has format {number}; this version reads {DATA_FORMAT}. Prepare the folder again"
        )
    return summary
