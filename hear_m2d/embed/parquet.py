"""The Parquet output of `hear-m2d embed`: a folder of files, one row per clip, in the order of the names.

The sorted clips are divided into shards before anything is decoded. A shard is written whole under its final
name, or not at all; a shard whose file exists is done. It also records the clips that failed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hear_m2d.embed.decode import Decoded
from hear_m2d.embed.embedder import Embedding
from hear_m2d.embed.inputs import Clip, Failure, Inputs
from hear_m2d.embed.loop import Loop
from hear_m2d.embed.npy import IDENTITY, claim, write_failures
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import (
    atomic_write,
    lock_folder,
    printable,
    remove_leftovers,
    report_write_errors,
    visible_names,
)

METADATA_FILE = ".embed.json"  # hidden: readers of a folder of Parquet files take each visible file for one
METADATA_KEY = b"hear_m2d"
FAILURES_KEY = b"hear_m2d_failures"
_GROUP_BYTES = 64 << 20  # of embeddings: a row group is written when it holds as much
_SHARD_CLIPS = (64, 512)  # minimum and maximum number of clips of a shard
_SHARDS = 1000  # target number of shards, within these limits
_SHARD_BYTES = 128 << 20  # bytes of audio files: a shard of long files must not take a day


class Shards:
    """The shards of one output folder.

    Args:
        folder: The folder.
        inputs: The clips.
        sizes: Number of clips in each shard.
        schema: Of each file.
    """

    def __init__(self, folder: Path, inputs: Inputs, sizes: Sequence[int], schema: Any) -> None:
        self.folder = folder
        self.inputs = inputs
        self.ends = np.cumsum(sizes).tolist()
        self.schema = schema

    @staticmethod
    @contextmanager
    def open(
        folder: Path,
        what: str,
        inputs: Inputs,
        facts: Mapping[str, Any],
        *,
        force: bool,
        shard_clips: int | None = None,
    ) -> Iterator[Shards]:
        """Lock the folder, and check that its content agrees with what will be written.

        Raises:
            InputError: The folder holds something else, or another process works in it.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; Parquet output is a folder of files: give another --out")
        names = hashlib.sha256(b"\0".join(os.fsencode(clip.name) for clip in inputs.clips))
        facts = dict(facts) | {"root": inputs.root}
        content = facts | {
            "what": what,
            "clips": len(inputs.clips),
            "names_sha256": names.hexdigest(),
            "shards": cut(inputs.clips, shard_clips),
        }
        with lock_folder(folder):
            if force:
                _remove_own(folder)
            if not (folder / METADATA_FILE).exists() and (others := visible_names(folder)):
                parquet = [name for name in others if name.endswith(".parquet")]
                if parquet or not force:
                    name = (parquet or others)[0]
                    raise InputError(
                        f"{folder} holds files that no run wrote ({name}, …). Give another --out"
                    )
            identity = (*IDENTITY, "what", "clips", "names_sha256")
            known = claim(folder, METADATA_FILE, content, identity, force=force)
            remove_leftovers(folder)
            yield Shards(folder, inputs, known["shards"], schema_of(facts, what))

    def path(self, index: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"part-{index:06d}.parquet"

    def clips(self, index: int) -> Sequence[Clip]:
        """Return the clips of a shard."""
        return self.inputs.clips[self.ends[index - 1] if index else 0 : self.ends[index]]

    def todo(self) -> list[int]:
        """Return the numbers of the shards that are not done."""
        return [index for index in range(len(self.ends)) if not self.path(index).is_file()]

    def done_before(self, todo: Sequence[int]) -> tuple[int, list[Failure]]:
        """Return how many clips are in the shards that are not in ``todo``, and their failures."""
        clips, failures = 0, []
        for index in sorted(set(range(len(self.ends))) - set(todo)):
            metadata = pq.read_metadata(self.path(index))
            clips += metadata.num_rows
            failures += [Failure(*entry) for entry in json.loads(metadata.metadata[FAILURES_KEY])]
        return clips, failures

    def finish(self, failures: Sequence[Failure]) -> Path | None:
        """Write the list of failures beside the folder; remove a folder without any shard."""
        with report_write_errors(self.folder):
            report = write_failures(self.folder.with_name(f"{self.folder.name}.failed.csv"), failures)
        remove_leftovers(self.folder)  # of processes that were killed while writing a shard
        if len(self.todo()) == len(self.ends):
            _remove_own(self.folder)
            (self.folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # it holds other files
                self.folder.rmdir()
        return report


def _remove_own(folder: Path) -> None:
    """Remove what earlier runs wrote; other files stay."""
    if (folder / METADATA_FILE).exists():
        for path in folder.glob("part-" + "[0-9]" * 6 + ".parquet"):
            path.unlink()
        (folder / METADATA_FILE).unlink()


def cut(clips: Sequence[Clip], shard_clips: int | None = None) -> list[int]:
    """Return the number of clips of each shard, so that none holds too many files or too much audio."""
    most = shard_clips or min(max(math.ceil(len(clips) / _SHARDS), _SHARD_CLIPS[0]), _SHARD_CLIPS[1])
    sizes = [0]
    held = 0
    for clip in clips:
        try:
            size = os.stat(clip.path).st_size  # noqa: PTH116  # there may be millions
        except OSError:  # reported when it is decoded
            size = 0
        if sizes[-1] == most or (sizes[-1] and held + size > _SHARD_BYTES):
            sizes.append(0)
            held = 0
        sizes[-1] += 1
        held += size
    return sizes


def write_shard(path: Path, clips: Iterable[Decoded], loop: Loop, schema: Any) -> None:
    """Embed clips into one file, whole or not at all; without a file if all fail.

    Args:
        path: The file.
        clips: The decoded clips.
        loop: Runs the model and counts.
        schema: Of the file.
    """
    rows: list[Embedding] = []
    held = clips_before = 0

    with report_write_errors(path.parent), suppress(_EmptyShardError), atomic_write(path) as file:
        with pq.ParquetWriter(
            # Floats hardly compress, and equal values are rare.
            file, schema, use_dictionary=False, compression="NONE", write_statistics=["path"],
        ) as writer:  # fmt: skip

            def add(batch: Sequence[Embedding]) -> list[Failure]:
                nonlocal held, rows
                rows += batch
                held += sum(embedding.nbytes for embedding in batch)
                if held >= _GROUP_BYTES:
                    writer.write_table(table_of(rows, schema))
                    rows, held = [], 0
                return []

            clips_before, failures_before = loop.clips, len(loop.failures)
            loop.run(clips, add)
            if rows:
                writer.write_table(table_of(rows, schema))
            failures = [(f.name, f.reason, f.detail) for f in loop.failures[failures_before:]]
            writer.add_key_value_metadata({FAILURES_KEY: json.dumps(failures).encode()})
        if loop.clips == clips_before:
            raise _EmptyShardError


class _EmptyShardError(Exception):
    """No clip of a shard could be embedded: it gets no file, and the next run tries it again."""


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
        columns["scene"] = _vectors([e.scene for e in embeddings], schema.field("scene").type)
    if "timestamps" in schema.names:
        times = [e.times_ms for e in embeddings if e.times_ms is not None]
        offsets = pa.array(np.cumsum([0, *map(len, times)]), pa.int64())
        frames = [e.timestamps for e in embeddings if e.timestamps is not None]
        # An hour alone is 1.4 GB: not copied.
        joined = frames[0] if len(frames) == 1 else np.concatenate(frames)
        vectors = _vectors(joined, schema.field("timestamps").type.value_type)
        columns["timestamps"] = pa.LargeListArray.from_arrays(offsets, vectors)
        columns["times_ms"] = pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(times)))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _vectors(rows: Any, kind: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), kind.list_size)
