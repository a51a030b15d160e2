"""Where `hear-m2d embed` writes: the state that makes it resumable, the list of failures, .npy files.

A name is only ever complete: everything is written beside its place and renamed.
"""

from __future__ import annotations

import csv
import errno
import fnmatch
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hear_m2d.embed.decode import Failure
from hear_m2d.embed.embedder import Embedding
from hear_m2d.embed.inputs import Inputs
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import (
    TEMPORARY,
    atomic_write,
    atomic_write_text,
    hold_folder,
    printable,
    sync_files,
)

STATE_FILE = "embed.json"
FAILED_FILE = "failed.csv"
_PENDING_FILE = ".pending.json"  # names the batch that is being written
_IDENTITY = ("format", "sha256", "options", "root")  # where these are equal, so are the embeddings
_ARRAYS = {
    "scene": ("scene",),
    "timestamps": ("timestamps", "times"),
    "both": ("scene", "timestamps", "times"),
}


class Target(Protocol):
    """What the run needs of an output."""

    done: frozenset[str]

    def add(self, batch: Sequence[Embedding]) -> list[Failure]:
        """Write a batch; return the clips that cannot be written."""

    def finish(self, failures: Sequence[Failure]) -> Path | None:
        """Complete the result; return the list of failures where there are any."""


def differing(there: Mapping[str, Any], asked: Mapping[str, Any], keys: Sequence[str] = _IDENTITY) -> str:
    """Return the values in which two states differ, as text."""
    return "; ".join(
        f"{key}: there {there.get(key)}, asked {asked.get(key)}"
        for key in keys
        if there.get(key) != asked.get(key)
    )


def read_state(path: Path) -> dict[str, Any] | None:
    """Return a state file's content, None without one.

    Raises:
        ValueError: It is damaged.
    """
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise InputError("it holds no JSON object")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: {error}. Give --force to begin anew, or another --out"
        ) from error
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state file."""
    atomic_write_text(path, json.dumps(state, indent=2) + "\n")


def write_failures(path: Path, failures: Sequence[Failure]) -> Path | None:
    """Write the list of failures, or remove an earlier one where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    writer.writerows(
        [printable(value) for value in (f.name, f.reason, f.detail)]
        for f in sorted(failures, key=lambda f: f.name)
    )
    atomic_write_text(path, text.getvalue())
    return path


@contextmanager
def said_plainly(target: Path) -> Iterator[None]:
    """Turn a write that the system refuses into a sentence and exit code 1."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkFailedError(
            f"writing to {target} failed: {reason}. What is written stays valid; the same command continues"
        ) from error


class NpyTarget:
    """A folder with ``NAME.scene.npy``, ``NAME.timestamps.npy`` and ``NAME.times.npy`` for each clip.

    Args:
        folder: The folder.
        what: Which of them.
        names: The clips'.
    """

    def __init__(self, folder: Path, what: str, names: Sequence[str]) -> None:
        self.folder = folder
        self.arrays = _ARRAYS[what]
        # A batch that was being written is done again, whole: what shares a forward pass then stays the same,
        # and with it the last digit.
        pending = (read_state(folder / _PENDING_FILE) or {}).get("names", [])
        self.done = frozenset(
            name
            for name in names
            if printable(name) not in pending and all(map(os.path.isfile, self._paths(name)))
        )

    @staticmethod
    @contextmanager
    def open(
        folder: Path, what: str, inputs: Inputs, facts: Mapping[str, Any], *, force: bool
    ) -> Iterator[NpyTarget]:
        """Hold the folder, and see to it that what lies in it goes together with what will be written.

        Raises:
            ValueError: Another model or other options wrote there, or nobody knows who, or another process
                is at work in it.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; --format npy needs a folder as --out")
        with hold_folder(folder):
            names = [clip.name for clip in inputs.clips]
            state = dict(facts) | {"root": inputs.root}
            if force:
                _remove_embeddings(folder, names)
            else:
                _check(folder, state, names)
            if (folder / STATE_FILE).is_file():
                for rest in _own_files(folder, TEMPORARY):  # of a run that was killed
                    rest.unlink()
            else:
                with said_plainly(folder):
                    write_state(folder / STATE_FILE, state)
            yield NpyTarget(folder, what, names)

    def add(self, batch: Sequence[Embedding]) -> list[Failure]:
        """Write a batch's files; a name that is too long for the system is a failure of that clip."""
        failures: list[Failure] = []
        written: list[Path] = []
        pending = self.folder / _PENDING_FILE
        write_state(pending, {"names": [printable(embedding.clip.name) for embedding in batch]})
        for embedding in batch:
            try:
                written += self._write(embedding)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                failures.append(Failure(embedding.clip.name, "not written", str(error.strerror)))
        sync_files(written)
        pending.unlink()  # not before the batch is on disk
        return failures

    def _write(self, embedding: Embedding) -> list[Path]:
        """Write a clip's files, not yet synced to disk; return their names."""
        parts: dict[str, NDArray[np.float32] | None] = {
            "scene": embedding.scene,
            "timestamps": embedding.timestamps,
            "times": embedding.times_ms,
        }
        paths = self._paths(embedding.clip.name)
        for array, path in zip(self.arrays, paths, strict=True):
            values = np.ascontiguousarray(parts[array])
            with atomic_write(path, sync=False) as file:
                # Not np.save: where the disk is full it does not say so.
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
                file.write(values.data)
        return paths

    def finish(self, failures: Sequence[Failure]) -> Path | None:
        """Write the list of failures."""
        (self.folder / _PENDING_FILE).unlink(missing_ok=True)
        return write_failures(self.folder / FAILED_FILE, failures)

    def _paths(self, name: str) -> list[Path]:
        return [self.folder / f"{name}.{array}.npy" for array in self.arrays]


def _check(folder: Path, state: Mapping[str, Any], names: Sequence[str]) -> None:
    there = read_state(folder / STATE_FILE)
    if there is None:
        for name in names:
            for array in _ARRAYS["both"]:
                if os.path.exists(path := folder / f"{name}.{array}.npy"):  # noqa: PTH110  # a long name is none
                    raise InputError(
                        f"{path} is there, and no {STATE_FILE} says what made it. "
                        f"Give another --out, or --force"
                    )
    elif told := differing(there, state):
        raise InputError(
            f"{folder} holds other embeddings ({told}). Give another --out, or --force to begin anew"
        )


def _remove_embeddings(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier run wrote: everything where its state is there, else what bears our names."""
    if (folder / STATE_FILE).is_file():
        for array in _ARRAYS["both"]:
            for path in _own_files(folder, f"*.{array}.npy"):
                path.unlink()
        (folder / _PENDING_FILE).unlink(missing_ok=True)
        (folder / STATE_FILE).unlink()
    for name in names:
        for array in _ARRAYS["both"]:
            if os.path.exists(path := folder / f"{name}.{array}.npy"):  # noqa: PTH110
                path.unlink()


def _own_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield what is of this run; a folder below that has a state of its own is another's."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not Path(place, name, STATE_FILE).is_file()]
        yield from (Path(place, name) for name in fnmatch.filter(names, pattern))
