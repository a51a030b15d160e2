"""Sources that are tables with the files' bytes in them: Parquet on disk, data sets of the Hugging Face hub.

Both have the hub's layout: a column ``audio`` of {bytes, path}, perhaps one of labels. Nothing is decoded by
the ``datasets`` library: the bytes go where those of any other file go.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hear_m2d.audio import AudioError, read_audio
from hear_m2d.pretrain.data.sources.base import LABEL_COLUMNS, Entry, Part, Skipped, Source, joined, sha256_of
from hear_m2d.utils.errors import InputError, MissingPackageError

INSTALL = "pip install 'hear-m2d[hub]'"
_ROWS = 32  # read at a time
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^/:]+))?(/(?P<config>[^:]+))?(:(?P<split>.+))?"
)


def parquet_source(paths: list[Path], root: Path, name: str) -> Source:
    """List Parquet files by their footers; the audio itself is read by the workers."""
    import pyarrow.parquet as pq

    groups: list[_Group] = []
    problems: list[Skipped] = []
    sizes: list[NDArray[np.int64]] = []
    for path in paths:
        relative = path.relative_to(root).as_posix()
        try:
            footer = pq.read_metadata(path)
            columns_of(pq.read_schema(path), relative)
        except (pa.ArrowInvalid, OSError) as error:
            problems.append((relative, "corrupt", " ".join(str(error).split())))
            continue
        row = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            groups.append(_Group(os.path.abspath(path), relative, number, row, 0, group.num_rows))  # noqa: PTH100
            sizes.append(np.full(group.num_rows, group.total_byte_size // max(group.num_rows, 1)))
            row += group.num_rows
    if not any(group.rows for group in groups):
        told = f" ({problems[0][0]}: {problems[0][2]})" if problems else ": its tables have no rows"
        raise InputError(f"{name} holds no audio{told}")
    firsts = np.cumsum([0, *(group.rows for group in groups)])
    listing = ((g.name, g.number, g.rows, int(s.sum())) for g, s in zip(groups, sizes, strict=True))

    def part(first: int, last: int) -> Part:
        chosen = []
        for at in range(int(np.searchsorted(firsts, first, "right")) - 1, len(groups)):
            if firsts[at] >= last:
                break
            skip = max(first - int(firsts[at]), 0)
            rows = min(last - int(firsts[at]), groups[at].rows) - skip
            group = groups[at]
            if rows > 0:
                chosen.append(_Group(group.path, group.name, group.number, group.first, skip, rows))
        return _ParquetPart(tuple(chosen))

    return Source(
        "parquet", name, np.concatenate(sizes), sha256_of(listing), part, firsts[1:-1], tuple(problems)
    )


def hub_source(address: str) -> Source:
    """List a data set of the hub, which the ``datasets`` library fetches and keeps in its cache.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: The address is none, or the data set cannot be had, or has no audio.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(
            f"{address} is no data set's address; expected hf://datasets/owner/name[@revision][/config][:split]"
        )
    if importlib.util.find_spec("datasets") is None:
        raise MissingPackageError(f"{address} needs the datasets library. Type: {INSTALL}", name="datasets")
    place = _Place(*(found[key] and unquote(found[key]) for key in ("repo", "revision", "config", "split")))
    splits = _load(place, address)
    sizes, firsts = [], [0]
    for split, table in splits.items():
        column = columns_of(table.data.schema, f"{address}, split {split},")[0]
        sizes.append(_stored_bytes(table.data, column))
        firsts.append(firsts[-1] + len(sizes[-1]))
    if not firsts[-1]:
        raise InputError(f"{address} holds no audio: its splits have no rows")
    names = list(splits)
    every = np.concatenate(sizes)

    def part(first: int, last: int) -> Part:
        runs = [
            (split, max(first - start, 0), min(last, end) - start)
            for split, start, end in zip(names, firsts, firsts[1:], strict=False)
            if start < last and end > first
        ]
        return _HubPart(address, place, tuple(runs))

    listing = ((split, size) for split, rows in zip(names, sizes, strict=True) for size in rows.tolist())
    return Source("hub", address, every, sha256_of(listing), part)


def columns_of(schema: Any, where: str) -> tuple[str, str | None, Callable[[Any], str | None]]:
    """Return the column of audio, that of labels, and what makes a text of a label.

    Raises:
        ValueError: No column holds files' bytes.
    """
    kinds = {name: schema.field(name).type for name in sorted(schema.names, key=lambda name: name != "audio")}
    held = [n for n, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    held += [n for n, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)]
    if not held:
        raise InputError(
            f"{where} has no column of audio files' bytes (binary, or a struct with a field `bytes`); its "
            f"columns: {', '.join(schema.names)}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    classes = _classes(schema, label)

    def text(value: Any) -> str | None:
        if isinstance(value, list | tuple):
            return joined([text(one) for one in value])
        if classes and isinstance(value, int):
            return classes[value] if 0 <= value < len(classes) else None
        return joined(value)

    return held[0], label, text


def _classes(schema: Any, label: str | None) -> list[str]:
    """Return the names of the hub's numbered classes, which stand in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[label]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = feature["names"]
        return [names[str(n)] for n in range(len(names))] if isinstance(names, dict) else list(names)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return []


@dataclass(frozen=True)
class _Group:
    """Some rows of a row group: those from ``skip`` on; its first row is number ``first`` of the file."""

    path: str
    name: str
    number: int
    first: int
    skip: int
    rows: int


@dataclass(frozen=True)
class _ParquetPart:
    """Rows of Parquet files."""

    groups: tuple[_Group, ...]

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    def __iter__(self) -> Iterator[Entry]:
        for group in self.groups:
            done = 0
            try:
                for row in self._rows(group):
                    yield row
                    done += 1
            except (pa.ArrowException, OSError) as error:
                told = " ".join(str(error).split())
                for row_number in range(done, group.rows):
                    name = f"{group.name}/{group.first + group.skip + row_number}"
                    yield Entry(name, None, partial(_refuse, name, told))

    def _rows(self, group: _Group) -> Iterator[Entry]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(group.path) as file:
            audio, label, text = columns_of(file.schema_arrow, group.name)
            place, last = 0, group.skip + group.rows
            wanted = [audio, label] if label else [audio]
            for batch in file.iter_batches(_ROWS, row_groups=[group.number], columns=wanted):
                first, end = max(group.skip - place, 0), min(last - place, len(batch))
                for row in batch.slice(first, max(end - first, 0)).to_pylist():
                    number = group.first + place + first
                    first += 1
                    yield _entry(f"{group.name}/{number}", row[audio], text(row[label]) if label else None,
                                 Path(group.path).parent)  # fmt: skip
                place += len(batch)
                if place >= last:
                    return


def _refuse(name: str, told: str, sample_rate: int) -> NDArray[np.float32]:
    raise AudioError(name, "corrupt", f"its table cannot be read: {told}")


def _entry(name: str, audio: Mapping[str, Any] | bytes | None, label: str | None, folder: Path) -> Entry:
    """Return a row's item; a row without bytes may say where its file is."""
    found: Mapping[str, Any] = {"bytes": audio} if isinstance(audio, bytes) else audio or {}
    path, content = found.get("path"), found.get("bytes")
    if path:
        name = f"{name}-{os.path.basename(path)}"  # noqa: PTH119
    if content is None and path:
        return Entry(name, label, partial(read_audio, folder / path))
    return Entry(name, label, partial(_decode, name, content or b""))


def _decode(name: str, content: bytes, sample_rate: int) -> NDArray[np.float32]:
    return read_audio(name, sample_rate, content=content)


@dataclass(frozen=True)
class _Place:
    """A data set of the hub."""

    repo: str
    revision: str | None
    config: str | None
    split: str | None


@dataclass(frozen=True)
class _HubPart:
    """Rows of a data set of the hub: (split, first, last-plus-one)."""

    address: str
    place: _Place
    runs: tuple[tuple[str, int, int], ...]

    def __len__(self) -> int:
        return sum(last - first for _, first, last in self.runs)

    def __iter__(self) -> Iterator[Entry]:
        for split, first, last in self.runs:
            rows = _load(self.place, self.address)[split]
            audio, label, text = columns_of(rows.data.schema, self.address)
            for number in range(first, last):
                row = rows.data.slice(number, 1).to_pylist()[0]
                yield _entry(f"{split}/{number}", row[audio], text(row[label]) if label else None, Path())


@lru_cache(maxsize=1)
def _load(place: _Place, address: str) -> dict[str, Any]:
    """Return the splits of a data set; ``.data`` is the memory-mapped table, where nothing is decoded."""
    import datasets

    try:
        found = datasets.load_dataset(place.repo, place.config, split=place.split, revision=place.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{address} cannot be loaded: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {place.split or "all": found}


def _stored_bytes(table: Any, column: str) -> NDArray[np.int64]:
    """Return the bytes of each row's file: of the offsets, without touching the files."""
    import pyarrow.compute as pc

    chunks = table.column(column).chunks
    held = [pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk for chunk in chunks]
    sizes = [pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in held]
    return np.concatenate(sizes).astype(np.int64) if sizes else np.zeros(0, np.int64)
