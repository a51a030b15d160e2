"""The Parquet output of `hear-m2d embed`: one row a clip, written in parts, merged at the end.

While work goes on the parts lie in a hidden folder beside the target. A part is complete or not there; what
is in the parts is done. The end reads one row group at a time, so nothing needs to fit into memory but that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hear_m2d.embed.decode import Failure, read_clips
from hear_m2d.embed.embedder import Embedder, Embedding
from hear_m2d.embed.inputs import Clip, Inputs
from hear_m2d.embed.npy import (
    STATE_FILE,
    differing,
    read_state,
    said_plainly,
    write_failures,
    write_state,
)
from hear_m2d.embed.run import Run
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write, hold_folder, printable, remove_leftovers

_PART_BYTES = 64 << 20  # of embeddings: a part, and a row group, are written when they hold as much
_PART_CLIPS = 1024
_IDENTITY = ("format", "sha256", "options", "root", "what")
METADATA_KEY = b"hear_m2d"


def schema_of(facts: Mapping[str, Any], what: str) -> Any:
    """Return the columns, with the facts as JSON in the metadata under ``hear_m2d``."""
    vector = pa.list_(pa.float32(), facts["embedding_size"])
    fields = [("path", pa.string()), ("duration_s", pa.float64()), ("sample_rate", pa.int32())]
    if what != "timestamps":
        fields.append(("scene", vector))
    if what != "scene":
        fields += [("timestamps", pa.large_list(vector)), ("times_ms", pa.large_list(pa.float32()))]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(dict(facts)).encode()})


def table_of(embeddings: Sequence[Embedding], schema: Any) -> Any:
    """Return one row per clip."""
    columns: dict[str, Any] = {
        "path": pa.array([printable(e.clip.name) for e in embeddings], pa.string()),
        "duration_s": pa.array([e.duration_s for e in embeddings], pa.float64()),
        "sample_rate": pa.array([e.sound.file_rate for e in embeddings], pa.int32()),
    }
    if "scene" in schema.names:
        columns["scene"] = _vectors([e.scene for e in embeddings], schema)
    if "timestamps" in schema.names:
        times = [e.times_ms for e in embeddings if e.times_ms is not None]
        offsets = pa.array(np.cumsum([0, *map(len, times)]), pa.int64())
        frames = [e.timestamps for e in embeddings if e.timestamps is not None]
        # An hour alone is 1.4 GB: not copied.
        vectors = _vectors(frames[0] if len(frames) == 1 else np.concatenate(frames), schema, "timestamps")
        columns["timestamps"] = pa.LargeListArray.from_arrays(offsets, vectors)
        columns["times_ms"] = pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(times)))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _vectors(rows: Any, schema: Any, name: str = "scene") -> Any:
    kind = schema.field(name).type
    size = (kind if name == "scene" else kind.value_type).list_size
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), size)


def open_writer(file: Any, schema: Any) -> Any:
    """Return a writer of embeddings: floats that hardly compress, and are never equal."""
    return pq.ParquetWriter(file, schema, use_dictionary=False, compression="NONE", write_statistics=["path"])


class ParquetTarget:
    """One Parquet file, by way of parts.

    Args:
        path: The file.
        parts: The hidden folder.
        schema: Of the file.
        names: The clips' names, in the order of the rows.
    """

    def __init__(self, path: Path, parts: Path, schema: Any, names: Sequence[str]) -> None:
        self.path = path
        self.parts = parts
        self.schema = schema
        self._order = {printable(name): index for index, name in enumerate(names)}
        written = set().union(*(part_names(part) for part in self._part_files()))
        self.done = frozenset(name for name in names if printable(name) in written)
        self._rows = Rows(schema, self._write_part)

    @staticmethod
    @contextmanager
    def open(
        path: Path, what: str, inputs: Inputs, facts: Mapping[str, Any], *, force: bool
    ) -> Iterator[ParquetTarget]:
        """Hold the target, and see to it that its parts go together with what will be written.

        Raises:
            ValueError: The target is there and finished, or its parts are of another model or other
                options, or another process is at work on it.
        """
        if path.is_dir():
            raise InputError(f"{path} is a folder; --format parquet needs a file name as --out")
        parts = path.with_name(f".{path.name}.parts")
        if path.exists() and not force and not (parts / STATE_FILE).is_file():
            raise InputError(f"{path} is there already; --force replaces it")
        with hold_folder(parts):
            state = dict(facts) | {"root": inputs.root, "what": what}
            there = None if force else read_state(parts / STATE_FILE)
            if there is None:
                for part in parts.glob("part-*.parquet"):
                    part.unlink()
                with said_plainly(path):
                    write_state(parts / STATE_FILE, state)
            elif told := differing(there, state, _IDENTITY):
                raise InputError(
                    f"{parts} holds unfinished work that differs ({told}). Give another --out, or --force to "
                    f"begin anew"
                )
            remove_leftovers(parts)
            schema = schema_of(dict(facts) | {"root": inputs.root}, what)
            yield ParquetTarget(path, parts, schema, [clip.name for clip in inputs.clips])

    def add(self, batch: Sequence[Embedding]) -> list[Failure]:
        """Take a batch; it is on disk when a part is full."""
        return self._rows.add(batch)

    def finish(self, failures: Sequence[Failure]) -> Path | None:
        """Merge the parts into the target, and write the list of failures beside it."""
        self._rows.flush()
        report = write_failures(self.path.with_name(f"{self.path.name}.failed.csv"), failures)
        files = self._part_files()
        if files:
            with atomic_write(self.path) as file, open_writer(file, self.schema) as writer:
                for table in merged(files, self._order):
                    writer.write_table(table)
        shutil.rmtree(self.parts)
        return report

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _write_part(self, table: Any) -> None:
        files = self._part_files()
        number = int(files[-1].stem.split("-")[1]) + 1 if files else 0
        with (
            atomic_write(self.parts / f"part-{number:06d}.parquet") as file,
            open_writer(file, self.schema) as writer,
        ):
            writer.write_table(table)


def write_shard(
    path: Path, clips: Sequence[Clip], embedder: Embedder, facts: Mapping[str, Any], *, workers: int
) -> dict[str, Any]:
    """Embed clips into one Parquet file of their own, whole or not at all; without one where all fail.

    Returns:
        What was done, as JSON: ``files``, ``clips``, ``audio_s``, ``seconds``, ``waited_s``,
        ``many_channels``, ``failures``.
    """
    schema = schema_of(facts, embedder.spec.what)
    with atomic_write(path) as file, open_writer(file, schema) as writer:
        rows = Rows(schema, writer.write_table)
        run = Run(embedder, path, rows.add)
        reader = read_clips(clips, embedder.sample_rate, workers=workers)
        with closing(reader):
            run.through(reader)
        rows.flush()
    if not run.clips:
        path.unlink()
    return {
        "files": len(clips),
        "clips": run.clips,
        "audio_s": run.audio_s,
        "seconds": run.seconds,
        "waited_s": run.waited_s,
        "many_channels": run.many_channels,
        "failures": [(f.name, f.reason, f.detail) for f in run.failures],
    }


class Rows:
    """Collects embeddings, and hands a table on when it is worth a row group.

    Args:
        schema: Of the table.
        write: Takes the table.
    """

    def __init__(self, schema: Any, write: Callable[[Any], None]) -> None:
        self._schema = schema
        self._write = write
        self._rows: list[Embedding] = []
        self._bytes = 0

    def add(self, batch: Sequence[Embedding]) -> list[Failure]:
        """Take a batch: whole, so that what shares a forward pass is the same after an interruption."""
        for embedding in batch:
            arrays = (embedding.scene, embedding.timestamps, embedding.times_ms)
            self._bytes += sum(array.nbytes for array in arrays if array is not None)
        self._rows += batch
        if self._bytes >= _PART_BYTES or len(self._rows) >= _PART_CLIPS:
            self.flush()
        return []

    def flush(self) -> None:
        """Hand on what is left."""
        if self._rows:
            self._write(table_of(self._rows, self._schema))
        self._rows, self._bytes = [], 0


def part_names(part: Path) -> list[str]:
    """Return the names of the clips in a part."""
    names: list[str] = pq.read_table(part, columns=["path"])["path"].to_pylist()
    return names


def merged(files: Iterable[Path], order: Mapping[str, int]) -> Iterator[Any]:
    """Yield the rows in the order asked for, one row group in memory; rows without a place are left out."""
    # One part is open at a time: there may be more parts than a process may open files.
    rows = []  # (place, part, row group, row in it)
    files = list(files)
    for number, file in enumerate(files):
        with pq.ParquetFile(file, memory_map=True) as part:
            for group in range(part.num_row_groups):
                names = part.read_row_group(group, columns=["path"])["path"].to_pylist()
                rows += [(order[name], number, group, row) for row, name in enumerate(names) if name in order]
    rows.sort()
    latest: tuple[int, ...] = ()
    table: Any = None
    for where, chosen in groupby(rows, key=lambda row: row[1:3]):
        if where != latest:
            with pq.ParquetFile(files[where[0]], memory_map=True) as part:
                latest, table = where, part.read_row_group(where[1])
        wanted = [row for *_, row in chosen]
        whole = wanted == list(range(table.num_rows))
        yield table if whole else pa.concat_tables([table.slice(row, 1) for row in wanted])
