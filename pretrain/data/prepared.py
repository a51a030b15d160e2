"""A prepared set: the content of ``data.json``, and the memory-mapped shards."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from hear_m2d.utils.files import differences, read_json
from hear_m2d.utils.listing import split_labels

DATA_FORMAT = 2
DATA_FILE, PLAN_FILE = "data.json", "plan.json"
_SHARD_NAME = re.compile(r"shard-\d{5,}(-\d+)?\.arrow")
_NOT_NULL = ["file", "start_s", "frames", "logmel"]


class ShardInfo(NamedTuple):
    """One line of ``data.json`` about a shard."""

    file: str
    clips: int
    bytes: int
    crc32: str = ""  # sets of an earlier version have none
    dropped: Sequence[tuple[int, int]] = ()  # duplicates that sets of an earlier version leave out

    @staticmethod
    def parse(line: Mapping[str, Any]) -> ShardInfo:
        """Read a line. The set may come from an unknown source: the name must not lead out of the folder."""
        shard = ShardInfo(**line)
        if not _SHARD_NAME.fullmatch(shard.file):
            raise ValueError(f"{shard.file!r} is not the name of a shard")
        return shard._replace(dropped=[(int(first), int(last)) for first, last in shard.dropped])


class LogMelData:
    """A prepared set: the content of its ``data.json``, and its shards of float16 log-mel, memory-mapped.

    Args:
        folder: A folder that ``hear-m2d prepare`` finished.

    Attributes:
        summary: ``data.json`` itself.
        frontend: Every number of the log-mel.
        mean: Over every bin of every frame of the set.
        std: Standard deviation over the same.
        hours: Hours of audio.
        labels: The classes, sorted; empty if clips have none.
        shards: Its shards.
        lengths: Frames of each clip, (clips,).

    Raises:
        InputError: There is no such set, it is unfinished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.summary = _read_summary(self.folder)
        try:
            self.frontend = FrontendConfig(**self.summary["frontend"])
            self.mean, self.std = float(self.summary["mean"]), float(self.summary["std"])
            self.hours = float(self.summary["hours"])
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
        tables = [_read_shard(self.folder / shard.file, shard, self.frontend.n_mels) for shard in self.shards]
        table = pa.concat_tables([SCHEMA.empty_table(), *tables])  # nothing is copied
        self._columns = {name: table[name] for name in ("file", "label", "start_s", "logmel")}
        self._first_rows = np.cumsum([0, *map(len, tables)])  # of each shard
        kept = np.ones(len(table), bool)
        for first_row, shard in zip(self._first_rows, self.shards, strict=False):
            for first, last in shard.dropped:
                kept[first_row + first : first_row + last] = False
        self._rows = np.flatnonzero(kept)
        self.lengths: NDArray[np.int64] = table["frames"].to_numpy()[kept].astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[LogMelData], tuple[Path]]:
        return LogMelData, (self.folder,)  # a spawned loader process maps the files itself

    def frames(self, index: int) -> int:
        """Return the length of a clip."""
        return int(self.lengths[index])

    def logmel(self, index: int) -> NDArray[np.float16]:
        """Return a clip's log-mel, (mels, frames): a read-only view of the file."""
        values = self._scalar("logmel", index).values.to_numpy()
        view: NDArray[np.float16] = values.reshape(-1, self.frontend.n_mels).T
        return view

    def label(self, index: int) -> str:
        """Return a clip's cell of labels (``utils/listing.py``); empty if it has none."""
        return self._scalar("label", index).as_py() or ""

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
        return self._scalar("file", index).as_py(), self._scalar("start_s", index).as_py()

    def describe_clip(self, index: int) -> str:
        """Return where a clip lies: its shard, its row there, its file."""
        row = int(self._rows[index])
        number = int(np.searchsorted(self._first_rows, row, "right")) - 1
        shard = self.folder / self.shards[number].file
        name, start_s = self.origin(index)
        return f"clip {row - self._first_rows[number]} of {shard} (from {name}, at {start_s:g} s)"

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
        shards = [shard for shard in self.shards if shard.crc32]
        with ThreadPoolExecutor(processors()) as pool:
            sums = pool.map(lambda shard: file_crc32(self.folder / shard.file), shards)
            for shard, crc32 in zip(shards, sums, strict=True):
                if crc32 != shard.crc32:
                    raise InputError(
                        f"{self.folder / shard.file} is damaged: its checksum is {crc32}, {DATA_FILE} says "
                        f"{shard.crc32}. Copy the folder again, or prepare it again"
                    )
        return sum(shard.bytes for shard in shards)

    def _scalar(self, column: str, index: int) -> Any:
        return self._columns[column][int(self._rows[index])]


def _read_shard(path: Path, shard: ShardInfo, mels: int) -> Any:
    """Return the table of a shard, memory-mapped."""
    if not path.is_file() or path.stat().st_size != shard.bytes:
        problem = (
            f"has {path.stat().st_size} bytes instead of {shard.bytes}" if path.is_file() else "is missing"
        )
        raise InputError(f"{path} {problem}: the folder is damaged. Prepare it again")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table = table.select(SCHEMA.names)  # an earlier version has one column more
        table.validate(full=True)  # wrong offsets would read outside the file
        if table.schema != SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of a shard")
        if any(table[name].null_count for name in _NOT_NULL):
            raise pa.ArrowInvalid("a cell is empty")
        if (pc.list_value_length(table["logmel"]).to_numpy() != table["frames"].to_numpy() * mels).any():
            raise pa.ArrowInvalid(f"a clip does not have {mels} mel bins a frame")
        if len(table) != shard.clips:
            raise pa.ArrowInvalid(f"it holds {len(table)} clips, {DATA_FILE} says {shard.clips}")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}. Prepare the folder again") from error
    return table


def require_frontend(data: LogMelData, wanted: FrontendConfig) -> None:
    """Raise an InputError if a set was made with another front end; it names each differing field."""
    if differing := differences(dataclasses.asdict(data.frontend), dataclasses.asdict(wanted)):
        raise InputError(
            f"{data.folder} was prepared with another front end than the recipe's ({differing}). Type: "
            f"hear-m2d prepare AUDIO OUT --sample-rate {wanted.sample_rate}, or give the folder of audio as "
            f"--data"
        )


def require_labels(labels: Sequence[str], folder: str | Path) -> None:
    """Raise an InputError if a set has no labels."""
    if not labels:
        raise InputError(
            f"{folder} has no labels: prepare it from a list with a column `label` (docs/data.md has the "
            f"other ways)"
        )


def is_prepared(folder: Path) -> bool:
    """Return whether ``hear-m2d prepare`` wrote here, finished or not; others may write a data.json, too."""
    for name, key in ((DATA_FILE, "frontend"), (PLAN_FILE, "format")):
        try:
            if key in read_json(folder / name):
                return True
        except (OSError, InputError):
            continue
    return any(folder.glob("shard-*.arrow"))


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / DATA_FILE
    if not path.is_file():
        if (folder / PLAN_FILE).is_file():
            raise InputError(f"{folder} is half prepared. The same `hear-m2d prepare` command finishes it")
        raise InputError(
            f"{folder} is not a prepared folder, it has no {DATA_FILE}. "
            f"Type: hear-m2d prepare AUDIO_DIR {folder}"
        )
    summary = read_json(path, hint="Prepare the folder again")
    if summary.get("format") != DATA_FORMAT:
        raise InputError(
            f"{path} has format {summary.get('format')}; this version reads {DATA_FORMAT}. Prepare the "
            f"folder again"
        )
    return summary
