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
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hear_m2d.audio import AudioError, Sound, read_sound
from hear_m2d.pretrain.data.sources.base import Item, Part, Skipped, Source, listing_sha256, one_line
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import LABEL_COLUMNS, join_labels

_ROWS = 32  # rows read at a time


class Table(NamedTuple):
    """A Parquet file to list.

    Attributes:
        file: What ``fetch`` takes.
        prefix: Its items are called ``prefix/row``; the rows of tables with one prefix are counted on.
        open: Opens it for reading its footer.
    """

    file: str
    prefix: str
    open: Callable[[], Any]


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

    Args:
        kind: Of the source.
        name: Of the source.
        tables: Parquet files.
        fetch: Returns the local path of a table's ``file``; runs in the worker.
        files_beside: A row without bytes may name a file below the table's folder.

    Raises:
        InputError: A table has no column of audio, or no table has a row.
    """
    groups: list[_Group] = []
    sizes: list[int] = []  # estimated bytes of a group's rows
    problems: list[Skipped] = []
    rows_so_far: dict[str, int] = {}
    for table in tables:
        try:
            with table.open() as file, pq.ParquetFile(file) as opened:
                footer = opened.metadata
                find_columns(opened.schema_arrow, table.prefix)
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
        why = f" ({problems[0][0]}: {problems[0][2]})" if problems else ": its tables have no rows"
        raise InputError(f"{name} holds no audio{why}")
    firsts = np.cumsum([0, *rows])
    listing = zip(
        (group.prefix for group in groups),
        (group.number for group in groups),
        rows,
        rows * sizes,
        strict=True,
    )

    def part(first: int, last: int) -> Part:
        chosen = []
        for group, begin in zip(groups, firsts, strict=False):
            skip, end = max(first - int(begin), 0), min(last - int(begin), group.rows)
            if skip < end:
                chosen.append(group._replace(skip=skip, rows=end - skip))
        return _Rows(tuple(chosen), fetch, files_beside)

    item_sizes = np.repeat(np.array(sizes, np.int64), rows)
    return Source(kind, name, item_sizes, listing_sha256(listing), part, firsts[1:-1], tuple(problems))


class _Group(NamedTuple):
    """Rows of a row group from its row ``skip`` on; its row 0 is number ``first`` of the prefix."""

    file: str
    prefix: str
    number: int
    first: int
    skip: int
    rows: int


@dataclass(frozen=True)
class _Rows:
    """Rows of Parquet files."""

    groups: tuple[_Group, ...]
    fetch: Callable[[str], str]
    files_beside: bool

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    def __iter__(self) -> Iterator[Item]:
        for group in self.groups:
            path = Path(self.fetch(group.file))
            done = 0
            try:
                for item in self._read(group, path):
                    yield item
                    done += 1
            except (pa.ArrowException, OSError) as error:
                why = f"its table cannot be read: {one_line(error)}"
                for row in range(group.skip + done, group.skip + group.rows):
                    name = f"{group.prefix}/{group.first + row}"
                    yield Item(name, None, partial(_refuse, name, why))

    def _read(self, group: _Group, path: Path) -> Iterator[Item]:
        with pq.ParquetFile(path) as file:
            audio, label, text = find_columns(file.schema_arrow, group.prefix)
            columns = [audio, label] if label else [audio]
            row, last = 0, group.skip + group.rows
            for batch in file.iter_batches(_ROWS, row_groups=[group.number], columns=columns):
                first, end = max(group.skip - row, 0), min(last - row, len(batch))
                for index, cells in enumerate(
                    batch.slice(first, max(end - first, 0)).to_pylist(), row + first
                ):
                    name = f"{group.prefix}/{group.first + index}"
                    folder = path.parent if self.files_beside else None
                    yield _item(name, cells[audio], text(cells[label]) if label else None, folder)
                row += len(batch)
                if row >= last:
                    return


def _item(name: str, audio: Mapping[str, Any] | bytes | None, label: str | None, folder: Path | None) -> Item:
    """Return a row's item; without bytes, the file that it names below ``folder``."""
    cell: Mapping[str, Any] = {"bytes": audio} if isinstance(audio, bytes) else audio or {}
    path, content = cell.get("path"), cell.get("bytes")
    if path:
        name = f"{name}-{os.path.basename(path)}"  # noqa: PTH119
    if content is not None:
        return Item(name, label, partial(_decode, name, content))
    if not path or folder is None:
        return Item(name, label, partial(_refuse, name, "its row holds no bytes"))
    # A table from an unknown source must not make this program read other files.
    if PurePath(path).is_absolute() or PurePath(path).drive or ".." in PurePath(path).parts:
        return Item(name, label, partial(_refuse, name, f"its path {path!r} leads out of the table's folder"))
    return Item(name, label, partial(read_sound, folder / path))


def _decode(name: str, content: bytes, sample_rate: int) -> Sound:
    return read_sound(name, sample_rate, content=content)


def _refuse(name: str, why: str, sample_rate: int) -> Sound:
    raise AudioError(name, "corrupt", why)


def find_columns(schema: Any, where: str) -> tuple[str, str | None, Callable[[Any], str | None]]:
    """Return the column of audio, that of labels, and what turns a label into a cell of labels.

    Raises:
        InputError: No column holds the bytes of files.
    """
    kinds = {name: schema.field(name).type for name in sorted(schema.names, key=lambda name: name != "audio")}
    held = [n for n, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    held += [n for n, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)]
    if not held:
        raise InputError(
            f"{where} has no column of audio files (binary, or a struct with a field `bytes`); its columns: "
            f"{', '.join(schema.names)}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    return held[0], label, partial(_cell, _class_names(schema, label))


def _cell(classes: list[str], value: Any) -> str | None:
    """Return a table's label as a cell: a number is a class, a list several labels, a text a cell already."""
    if isinstance(value, list | tuple):
        return join_labels(name for one in value if (name := _label(classes, one))) or None
    if isinstance(value, str):
        return value or None
    name = _label(classes, value)
    return join_labels([name]) if name else None


def _label(classes: list[str], value: Any) -> str | None:
    if classes and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else None
    return None if value is None else str(value)


def _class_names(schema: Any, label: str | None) -> list[str]:
    """Return the names of the hub's numbered classes, which lie in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[label]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = feature["names"]
        return [names[str(n)] for n in range(len(names))] if isinstance(names, dict) else list(names)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return []
