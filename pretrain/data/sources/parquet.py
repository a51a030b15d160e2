"""Parquet files with the bytes of audio files in them, as the Hugging Face hub stores audio.

A row has a column ``audio`` of {bytes, path}, or a binary column, and perhaps one of labels. Listing reads
the footers only; a worker reads the row groups of its part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hear_m2d.audio import AudioError, Sound, read_sound
from hear_m2d.pretrain.data.sources.base import (
    Item,
    Skipped,
    Source,
    label_cell,
    listing_sha256,
    no_audio,
    one_line,
)
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import LABEL_COLUMNS

_ROWS = 32  # rows read at a time


class Table(NamedTuple):
    """A Parquet file to list; ``file`` is what ``fetch`` takes, ``open`` opens it for its footer.

    Its items are called ``prefix/row``; the rows of tables with one prefix are counted on.
    """

    file: str
    prefix: str
    open: Callable[[], Any]


class _Group(NamedTuple):
    """Rows of a row group from its row ``skip`` on; its row 0 is number ``first`` of the prefix."""

    file: str
    prefix: str
    number: int
    first: int
    skip: int
    rows: int


def parquet_source(paths: list[Path], root: Path, name: str) -> Source:
    """List Parquet files on disk; a row without bytes may name a file below the table's folder."""
    tables = [
        Table(os.path.abspath(path), path.relative_to(root).as_posix(), partial(open, path, "rb"))  # noqa: PTH100
        for path in paths
    ]
    return tables_source("parquet", name, tables, fetch=str, files_beside=True)


def tables_source(
    kind: str, name: str, tables: Iterable[Table], *, fetch: Callable[[str], str], files_beside: bool
) -> Source:
    """List tables by their footers.

    ``fetch`` runs in the worker and returns the local path of a table's ``file``. With ``files_beside``, a
    row without bytes may name a file below the table's folder.

    Raises:
        InputError: A table has no column of audio, or no table has a row.
    """
    groups: list[_Group] = []
    sizes: list[int] = []  # estimated bytes of a group's rows
    problems: list[Skipped] = []
    rows_so_far: dict[str, int] = {}
    for table in tables:
        try:
            with table.open() as file, pq.ParquetFile(file) as parquet:
                footer = parquet.metadata
                _find_columns(parquet.schema_arrow, table.prefix)
        except (pa.ArrowException, OSError) as error:
            # Arrow's own errors are plain OSErrors; a failing network is not a damaged table.
            if isinstance(error, OSError) and type(error) is not OSError and not files_beside:
                raise
            reason = "unreadable" if isinstance(error, PermissionError) else "corrupt"
            problems.append((table.prefix, reason, one_line(error)))
            continue
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            first = rows_so_far.get(table.prefix, 0)
            rows_so_far[table.prefix] = first + group.num_rows
            groups.append(_Group(table.file, table.prefix, number, first, 0, group.num_rows))
            sizes.append(group.total_byte_size // max(group.num_rows, 1))
    rows = np.array([group.rows for group in groups], np.int64)
    if not rows.sum():
        raise no_audio(name, "its tables have no rows", problems)
    firsts = np.cumsum([0, *rows])

    def part(first: int, last: int) -> _Rows:
        chosen = []
        for group, begin in zip(groups, firsts, strict=False):
            skip, end = max(first - int(begin), 0), min(last - int(begin), group.rows)
            if skip < end:
                chosen.append(group._replace(skip=skip, rows=end - skip))
        return _Rows(tuple(chosen), fetch, files_beside)

    item_sizes = np.repeat(np.array(sizes, np.int64), rows)
    listing = [
        (group.prefix, group.number, group.rows, group.rows * size)
        for group, size in zip(groups, sizes, strict=True)
    ]
    return Source(kind, name, item_sizes, listing_sha256(listing), part, firsts[1:-1], tuple(problems))


@dataclass(frozen=True)
class _Rows:
    """Rows of Parquet files, read when they are iterated."""

    groups: tuple[_Group, ...]
    fetch: Callable[[str], str]
    files_beside: bool

    def __iter__(self) -> Iterator[Item]:
        for group in self.groups:
            path, done = Path(self.fetch(group.file)), 0
            try:
                for item in self._read(group, path):
                    yield item
                    done += 1
            except (pa.ArrowException, OSError) as error:
                reason = f"its table cannot be read: {one_line(error)}"
                for row in range(group.skip + done, group.skip + group.rows):
                    name = f"{group.prefix}/{group.first + row}"
                    yield Item(name, None, partial(_refuse, name, reason))

    def _read(self, group: _Group, path: Path) -> Iterator[Item]:
        folder = path.parent if self.files_beside else None
        with pq.ParquetFile(path) as file:
            audio, label, classes = _find_columns(file.schema_arrow, group.prefix)
            columns = [audio, label] if label else [audio]
            batches = file.iter_batches(_ROWS, row_groups=[group.number], columns=columns)
            rows = (cells for batch in batches for cells in batch.to_pylist())
            wanted = islice(rows, group.skip, group.skip + group.rows)
            for number, cells in enumerate(wanted, group.first + group.skip):
                value = cells[label] if label else None
                if classes and not isinstance(value, str):
                    values = value if isinstance(value, list) else [value]
                    value = [_class_name(classes, one) for one in values]
                yield _item(f"{group.prefix}/{number}", cells[audio], label_cell(value), folder)


def _item(name: str, audio: Mapping[str, Any] | bytes | None, label: str | None, folder: Path | None) -> Item:
    """Return a row's item; without bytes, the file that it names below ``folder``."""
    cell: Mapping[str, Any] = {"bytes": audio} if isinstance(audio, bytes) else audio or {}
    path, content = cell.get("path"), cell.get("bytes")
    if path:
        name = f"{name}-{os.path.basename(path)}"  # noqa: PTH119
    if content is not None:
        return Item(name, label, partial(read_sound, name, content=content))
    if not path or folder is None:
        return Item(name, label, partial(_refuse, name, "its row holds no bytes"))
    # A table from an unknown source must not make this program read other files.
    if PurePath(path).is_absolute() or PurePath(path).drive or ".." in PurePath(path).parts:
        return Item(name, label, partial(_refuse, name, f"its path {path!r} leads out of the table's folder"))
    return Item(name, label, partial(read_sound, folder / path))


def _refuse(name: str, reason: str, sample_rate: int) -> Sound:
    raise AudioError(name, "corrupt", reason)


def _find_columns(schema: Any, table: str) -> tuple[str, str | None, list[str]]:
    """Return the column of audio, that of labels, and the names of the hub's numbered classes."""
    kinds = {name: schema.field(name).type for name in sorted(schema.names, key=lambda name: name != "audio")}
    audio = [
        n for n, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ]
    audio += [n for n, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)]
    if not audio:
        raise InputError(
            f"{table} has no column of audio files (binary, or a struct with a field `bytes`); its columns: "
            f"{', '.join(schema.names)}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    try:  # the schema's metadata may come from an unknown source, in any form
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = feature["names"]
        classes = [names[str(n)] for n in range(len(names))] if isinstance(names, dict) else list(names)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        classes = []
    return audio[0], label, classes


def _class_name(classes: list[str], value: Any) -> Any:
    """Return the name of a numbered class, and any other label as it is."""
    if not isinstance(value, int):
        return value
    return classes[value] if 0 <= value < len(classes) else None
