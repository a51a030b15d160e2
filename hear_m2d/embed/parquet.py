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
from hear_m2d.embed.loop import Loop, Summary
from hear_m2d.embed.npy import FORCE_HINT, IDENTITY, write_failures
from hear_m2d.utils.files import (
    atomic_write,
    claim_folder,
    lock_folder,
    printable,
    remove_leftovers,
    report_write_errors,
    visible_names,
)
from hear_m2d.utils.progress import ProgressBar

METADATA_FILE = ".embed.json"  # hidden: readers of a folder of Parquet files take each visible file for one
METADATA_KEY = b"hear_m2d"
FAILURES_KEY = b"hear_m2d_failures"
_SHARD_CLIPS = (64, 512)  # minimum and maximum number of clips of a shard
_SHARDS = 1000  # target number of shards, within these limits
_SHARD_BYTES = 128 << 20  # bytes of audio files: a shard of long files must not take a day


class Shards:
    """The shards of one output folder; ``sizes`` are the numbers of clips in each."""

    def __init__(self, folder: Path, inputs: Inputs, sizes: Sequence[int], schema: Any) -> None:
        self.folder = folder
        self.inputs = inputs
        self.ends = np.cumsum(sizes).tolist()
        self.schema = schema

    @staticmethod
    @contextmanager
    def open(
        folder: Path, what: str, inputs: Inputs, metadata: Mapping[str, Any], *, force: bool
    ) -> Iterator[Shards]:
        """Lock the folder, and check that its content agrees with what will be written.

        Raises:
            InputError: The folder holds something else, or another process works in it.
        """
        names = hashlib.sha256(b"\0".join(os.fsencode(clip.name) for clip in inputs.clips))
        metadata = {**metadata, "root": inputs.root}
        identity = {"what": what, "clips": len(inputs.clips), "names_sha256": names.hexdigest()}
        content = {**metadata, **identity, "shards": cut(inputs.clips)}
        with lock_folder(folder):
            if force:
                _remove_own(folder)
            # With --force other files may stay, but not those that readers would take for shards.
            others = [name for name in visible_names(folder) if force and not name.endswith(".parquet")]
            known = claim_folder(
                folder, METADATA_FILE, content, compare=(*IDENTITY, *identity), ignore=others, hint=FORCE_HINT
            )
            remove_leftovers(folder)
            yield Shards(folder, inputs, known["shards"], schema_of(metadata, what))

    def path(self, index: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"part-{index:06d}.parquet"

    def clips(self, index: int) -> Sequence[Clip]:
        """Return the clips of a shard."""
        return self.inputs.clips[self.ends[index - 1] if index else 0 : self.ends[index]]

    def todo(self) -> list[int]:
        """Return the numbers of the shards that are not done."""
        return [index for index in range(len(self.ends)) if not self.path(index).is_file()]

    def count_done(self, todo: Sequence[int], summary: Summary, bar: ProgressBar) -> None:
        """Count the clips and failures of the shards that are not in ``todo``."""
        for index in sorted(set(range(len(self.ends))) - set(todo)):
            metadata = pq.read_metadata(self.path(index))
            summary.already += metadata.num_rows
            summary.failures += [Failure(*entry) for entry in json.loads(metadata.metadata[FAILURES_KEY])]
            bar.update(len(self.clips(index)))

    def finish(self, failures: Sequence[Failure]) -> Path | None:
        """Write the list of failures beside the folder; remove a folder without any shard."""
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


def cut(clips: Sequence[Clip]) -> list[int]:
    """Return the number of clips of each shard, so that none holds too many files or too much audio."""
    most = min(max(math.ceil(len(clips) / _SHARDS), _SHARD_CLIPS[0]), _SHARD_CLIPS[1])
    sizes = [0]
    shard_bytes = 0
    for clip in clips:
        try:
            size = os.stat(clip.path).st_size  # noqa: PTH116  # there may be millions
        except OSError:  # reported when it is decoded
            size = 0
        if sizes[-1] == most or (sizes[-1] and shard_bytes + size > _SHARD_BYTES):
            sizes.append(0)
            shard_bytes = 0
        sizes[-1] += 1
        shard_bytes += size
    return sizes


def write_shard(path: Path, clips: Iterable[Decoded], loop: Loop, schema: Any) -> None:
    """Embed clips into one file, whole or not at all; without a file if all fail."""
    clips_before, failures_before = loop.summary.clips, len(loop.summary.failures)
    with report_write_errors(path.parent), suppress(_EmptyShardError), atomic_write(path) as file:
        with pq.ParquetWriter(
            # Floats hardly compress, and equal values are rare.
            file, schema, use_dictionary=False, compression="NONE", write_statistics=["path"],
        ) as writer:  # fmt: skip

            def add(batch: Sequence[Embedding]) -> list[Failure]:
                if batch:
                    writer.write_table(table_of(batch, schema))
                return []

            loop.run(clips, add)
            failures = [(f.name, f.reason, f.detail) for f in loop.summary.failures[failures_before:]]
            writer.add_key_value_metadata({FAILURES_KEY: json.dumps(failures).encode()})
        if loop.summary.clips == clips_before:
            raise _EmptyShardError


class _EmptyShardError(Exception):
    """No clip of a shard could be embedded: it gets no file, and the next run tries it again."""


def schema_of(metadata: Mapping[str, Any], what: str) -> Any:
    """Return the columns, with the metadata as JSON under the key ``hear_m2d``."""
    vector = pa.list_(pa.float32(), metadata["embedding_size"])
    fields = [("path", pa.string()), ("duration_s", pa.float64()), ("sample_rate", pa.int32())]
    if what != "timestamps":
        fields.append(("scene", vector))
    if what != "scene":
        fields += [("timestamps", pa.large_list(vector)), ("times_ms", pa.large_list(pa.float32()))]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(dict(metadata)).encode()})


def table_of(embeddings: Sequence[Embedding], schema: Any) -> Any:
    """Return one row per clip."""
    columns: dict[str, Any] = {
        "path": [printable(e.clip.name) for e in embeddings],
        "duration_s": [e.duration_s for e in embeddings],
        "sample_rate": [e.file_rate for e in embeddings],
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
    return pa.table(columns, schema=schema)


def _vectors(rows: Any, kind: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), kind.list_size)
