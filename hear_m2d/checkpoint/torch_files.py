"""torch's .pth files, both layouts, without torch's unpickler: first what they hold, then chosen tensors.

Since torch 1.6 a .pth is a zip: data.pkl, and one member for the bytes of each storage. Before, pickles stood
one after another, and the storages behind them. Tensors that are not asked for are never read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from hear_m2d.checkpoint.allowed import Name, StoredTensor
from hear_m2d.checkpoint.archive import open_archive, read_stored, shown, torch_root
from hear_m2d.checkpoint.unpickle import read_pickle
from hear_m2d.utils.errors import InputError

MAX_PICKLE = 64 * 2**20
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older layout
DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The elements that tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: Of its elements.
        count: Elements.
    """

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


class TorchFile:
    """An open .pth.

    Attributes:
        content: What it holds, with a :class:`StoredTensor` for each tensor.
    """

    content: Any

    def __init__(self) -> None:
        self._read: dict[str, bytearray] = {}

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read one tensor.

        Raises:
            ValueError: Its bytes are missing, cut, damaged, or fewer than it claims.
        """
        storage: Storage = stored.storage
        if storage.key not in self._read:
            self._read[storage.key] = self._bytes(storage)
        data = self._read[storage.key]
        elements = math.prod(stored.shape)
        last = stored.offset + sum(
            (n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True)
        )
        if len(data) != storage.size or elements > storage.count or (elements and last >= storage.count):
            raise InputError(f"a tensor claims more elements than its storage {shown(storage.key)} has")
        if not elements:
            return torch.empty(stored.shape, dtype=storage.dtype)
        flat = torch.frombuffer(data, dtype=storage.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset)

    def _bytes(self, storage: Storage) -> bytearray:
        raise NotImplementedError


@contextmanager
def open_torch_file(file: IO[bytes]) -> Iterator[TorchFile]:
    """Open a ``.pth`` and interpret its pickle.

    Args:
        file: Binary and seekable, at its start.

    Raises:
        RefusedTypeError: Its pickle names what no checkpoint holds.
        ValueError: Not a ``.pth``, or a damaged one.
    """
    start = file.read(2)
    file.seek(0)
    if start != b"PK":
        yield _Older(file)
        return
    with open_archive(file) as archive:
        root = torch_root(archive)
        if root is None:
            raise InputError("it is a zip, but no .pth: it has no data.pkl")
        yield _Zipped(archive, root)


class _Zipped(TorchFile):
    """The layout since torch 1.6."""

    def __init__(self, archive: Any, root: str) -> None:
        super().__init__()
        self._archive, self._root = archive, root
        names = archive.namelist()
        if f"{root}constants.pkl" in names:
            raise InputError("it is a TorchScript program, not a checkpoint")
        if f"{root}byteorder" in names and read_stored(archive, f"{root}byteorder", most=99) != b"little":
            raise InputError("its numbers are not little-endian: save it again on an ordinary machine")
        pickled = read_stored(archive, f"{root}data.pkl", most=MAX_PICKLE)
        self.content = read_pickle(io.BytesIO(pickled), _storage)

    def _bytes(self, storage: Storage) -> bytearray:
        return read_stored(self._archive, f"{self._root}data/{storage.key}", most=storage.size)


class _Older(TorchFile):
    """The layout before torch 1.6: magic number, version, system, content, keys, then the storages."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        known: dict[str, Storage] = {}

        def storage(pid: Any) -> Storage:
            found = _storage(pid)
            if known.setdefault(found.key, found) != found:
                raise InputError("one storage with two sizes")
            return found

        size = file.seek(0, 2)
        file.seek(0)
        if read_pickle(file, _storage) != MAGIC or read_pickle(file, _storage) != PROTOCOL:
            raise InputError("it is a pickle, but no .pth")
        read_pickle(file, _storage)  # the machine that wrote it
        self.content = read_pickle(file, storage)
        keys = read_pickle(file, _storage)
        if type(keys) is not list or not all(type(key) is str and key in known for key in keys):
            raise InputError("its list of storages is damaged")
        self._places: dict[str, int] = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            self._places[key] = file.tell()
            if count != known[key].count or file.tell() + known[key].size > size:
                raise InputError(f"its storage {shown(key)} is cut or damaged")
            file.seek(known[key].size, 1)
        if file.tell() != size:
            raise InputError("more bytes follow its last storage")

    def _bytes(self, storage: Storage) -> bytearray:
        if storage.key not in self._places:
            raise InputError(f"its storage {shown(storage.key)} is missing")
        self._file.seek(self._places[storage.key])
        return bytearray(self._file.read(storage.size))


def _storage(pid: Any) -> Storage:
    """Return what a persistent id says: ("storage", type, key, device, count[, view])."""
    if type(pid) is not tuple or len(pid) not in {5, 6} or pid[0] != "storage":
        raise InputError("a persistent id that is no storage")
    _, kind, key, _, count = pid[:5]
    if type(kind) is not Name or type(key) is not str or type(count) is not int or not 0 <= count < 2**48:
        raise InputError("a storage that is none")
    if pid[5:] not in {(), (None,)}:
        raise InputError("a storage that is part of another")
    name = kind.dotted.removeprefix("torch.").removesuffix("Storage")
    if name not in DTYPES:
        raise InputError(f"a storage of {kind.dotted}")
    return Storage(key=key, dtype=DTYPES[name], count=count)
