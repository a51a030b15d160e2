"""The .npy output of `hear-m2d embed`, and the list of failures.

A clip is done when its files exist under their final names. They are written elsewhere in the folder, synced
to disk batch by batch, and renamed.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hear_m2d.embed.embedder import Embedding
from hear_m2d.embed.inputs import Failure, Inputs
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import (
    atomic_write_text,
    claim_folder,
    lock_folder,
    printable,
    sync_files,
    visible_names,
)

METADATA_FILE = "embed.json"
FAILED_FILE = "failed.csv"
IDENTITY = ("format", "sha256", "options", "root")  # if these are equal, the embeddings are equal
FORCE_HINT = "Give another --out, or --force to start again"
_WRITTEN_FILE = ".written.jsonl"  # names of clips whose files were written by a run, for --force
_PARTIAL = ".partial"
_ARRAYS = {
    "scene": ("scene",),
    "timestamps": ("timestamps", "times"),
    "both": ("timestamps", "scene", "times"),  # longest first: if its name is too long, no file is written
}


def write_failures(path: Path, failures: Sequence[Failure]) -> Path | None:
    """Write the list of failures, or remove an earlier one if there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    for failure in sorted(failures, key=lambda failure: failure.name):
        writer.writerow([printable(value) for value in (failure.name, failure.reason, failure.detail)])
    atomic_write_text(path, text.getvalue())
    return path


class NpyFolder:
    """A folder with ``NAME.scene.npy``, ``NAME.timestamps.npy`` and ``NAME.times.npy`` for each clip."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.arrays = _ARRAYS[what]

    @staticmethod
    @contextmanager
    def open(
        folder: Path, what: str, inputs: Inputs, metadata: Mapping[str, Any], *, force: bool
    ) -> Iterator[NpyFolder]:
        """Lock the folder, and check that its content agrees with what will be written.

        Raises:
            InputError: Another model or other options wrote there, or files of these names exist and no run
                wrote them, or another process works in the folder.
        """
        with lock_folder(folder):
            names = [clip.name for clip in inputs.clips]
            if force:
                _remove_written(folder, names)
            elif not (folder / METADATA_FILE).exists() and (path := next(_existing(folder, names), None)):
                raise InputError(f"{path} exists, and no {METADATA_FILE} says what made it. {FORCE_HINT}")
            content = {**metadata, "root": inputs.root}
            others = visible_names(folder)
            claim_folder(folder, METADATA_FILE, content, compare=IDENTITY, ignore=others, hint=FORCE_HINT)
            shutil.rmtree(folder / _PARTIAL, ignore_errors=True)  # of a run that was killed
            yield NpyFolder(folder, what)
            shutil.rmtree(folder / _PARTIAL, ignore_errors=True)

    def is_done(self, name: str) -> bool:
        """Return whether all files of a clip exist."""
        return all(map(os.path.isfile, self._paths(name)))

    def add(self, batch: Sequence[Embedding]) -> list[Failure]:
        """Write a batch; return the clips whose names are too long for the file system."""
        partial = self.folder / _PARTIAL
        partial.mkdir(exist_ok=True)
        with (self.folder / _WRITTEN_FILE).open("a", encoding="ascii") as file:
            file.writelines(json.dumps(embedding.clip.name) + "\n" for embedding in batch)
        written = []
        for number, embedding in enumerate(batch):
            arrays = {
                "scene": embedding.scene,
                "timestamps": embedding.timestamps,
                "times": embedding.times_ms,
            }
            for array in self.arrays:
                written.append(partial / f"{number}.{array}")
                values = np.ascontiguousarray(arrays[array])
                header = np.lib.format.header_data_from_array_1_0(values)
                with written[-1].open("wb") as file:  # not np.save, which does not report a full disk
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(values.data)
        sync_files(written)
        failures = []
        for number, embedding in enumerate(batch):
            try:
                for array, path in zip(self.arrays, self._paths(embedding.clip.name), strict=True):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    (partial / f"{number}.{array}").replace(path)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                failures.append(Failure(embedding.clip.name, "not written", str(error.strerror)))
        return failures

    def _paths(self, name: str) -> list[Path]:
        return [self.folder / f"{name}.{array}.npy" for array in self.arrays]


def _existing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the files of these clips that exist."""
    for name in names:
        for array in _ARRAYS["both"]:
            if os.path.exists(path := folder / f"{name}.{array}.npy"):  # noqa: PTH110  # false for a long name
                yield path


def _remove_written(folder: Path, names: Sequence[str]) -> None:
    """Remove files of earlier runs, and files with these names; nothing else."""
    names = list(names)
    written = folder / _WRITTEN_FILE
    for line in written.read_bytes().splitlines() if written.exists() else ():
        with suppress(ValueError):  # cut off when its process was killed, before the files were written
            names.append(json.loads(line))
    names = [name for name in names if ".." not in PurePosixPath(name).parts and not name.startswith("/")]
    for path in (*_existing(folder, names), written, folder / METADATA_FILE):
        path.unlink(missing_ok=True)
