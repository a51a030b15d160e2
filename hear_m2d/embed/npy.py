"""The .npy output of `hear-m2d embed`, and code of all outputs: folder owner, list of failures.

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
    differences,
    folder_owner,
    lock_folder,
    printable,
    report_write_errors,
    sync_files,
    visible_names,
    write_json,
)

METADATA_FILE = "embed.json"
FAILED_FILE = "failed.csv"
IDENTITY = ("format", "sha256", "options", "root")  # if these are equal, the embeddings are equal
_WRITTEN_FILE = ".written.jsonl"  # names of clips whose files were written by a run, for --force
_PARTIAL = ".partial"
_ARRAYS = {
    "scene": ("scene",),
    "timestamps": ("timestamps", "times"),
    "both": ("timestamps", "scene", "times"),  # longest first: if its name is too long, no file is written
}


def claim(
    folder: Path, metadata: str, content: Mapping[str, Any], identity: Sequence[str], *, force: bool
) -> dict[str, Any]:
    """Take a folder for a run, or continue an earlier one whose identity agrees.

    Args:
        folder: The folder, locked.
        metadata: Name of the metadata file.
        content: What to write to it.
        identity: The fields that must agree with an earlier run.
        force: Replace the earlier metadata.

    Returns:
        The content of the metadata file.

    Raises:
        InputError: The folder belongs to another run; the message names what differs.
    """
    known = None if force else folder_owner(folder, metadata, ignore=visible_names(folder))
    if known is None:
        with report_write_errors(folder):
            write_json(folder / metadata, content)
        return dict(content)
    if differing := differences(known, {key: content[key] for key in identity}):
        raise InputError(
            f"{folder} holds other embeddings: {differing}. Give another --out, or --force to start again"
        )
    return known


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
    """A folder with ``NAME.scene.npy``, ``NAME.timestamps.npy`` and ``NAME.times.npy`` for each clip.

    Args:
        folder: The folder.
        what: Which of them: ``scene``, ``timestamps`` or ``both``.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.arrays = _ARRAYS[what]

    @staticmethod
    @contextmanager
    def open(
        folder: Path, what: str, inputs: Inputs, facts: Mapping[str, Any], *, force: bool
    ) -> Iterator[NpyFolder]:
        """Lock the folder, and check that its content agrees with what will be written.

        Raises:
            InputError: Another model or other options wrote there, or files of these names exist and no run
                wrote them, or another process works in the folder.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; --format npy needs a folder as --out")
        with lock_folder(folder):
            if force:
                _remove_written(folder, [clip.name for clip in inputs.clips])
            elif not (folder / METADATA_FILE).exists():
                _check_free(folder, inputs)
            claim(folder, METADATA_FILE, dict(facts) | {"root": inputs.root}, IDENTITY, force=force)
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
            parts = {
                "scene": embedding.scene,
                "timestamps": embedding.timestamps,
                "times": embedding.times_ms,
            }
            for array in self.arrays:
                written.append(partial / f"{number}.{array}")
                values = np.ascontiguousarray(parts[array])
                with written[-1].open("wb") as file:
                    # Not np.save, which does not report a full disk.
                    np.lib.format.write_array_header_1_0(
                        file, np.lib.format.header_data_from_array_1_0(values)
                    )
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


def _check_free(folder: Path, inputs: Inputs) -> None:
    """Refuse to overwrite files that no run wrote."""
    for clip in inputs.clips:
        for array in _ARRAYS["both"]:
            if os.path.exists(path := folder / f"{clip.name}.{array}.npy"):  # noqa: PTH110  # a long name is none
                raise InputError(
                    f"{path} exists, and no {METADATA_FILE} says what made it. Give another --out, or --force"
                )


def _remove_written(folder: Path, names: Sequence[str]) -> None:
    """Remove files of earlier runs, and files with these names; nothing else."""
    names = list(names)
    written = folder / _WRITTEN_FILE
    for line in written.read_bytes().splitlines() if written.exists() else ():
        with suppress(ValueError):  # cut off when its process was killed, before the files were written
            names.append(json.loads(line))
    for name in names:
        if ".." not in PurePosixPath(name).parts and not name.startswith("/"):
            for array in _ARRAYS["both"]:
                if os.path.exists(path := folder / f"{name}.{array}.npy"):  # noqa: PTH110  # a long name is none
                    path.unlink()
    written.unlink(missing_ok=True)
    (folder / METADATA_FILE).unlink(missing_ok=True)
