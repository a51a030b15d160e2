"""Zip archives of strangers: nothing is unpacked by name, and no member gives more bytes than it has to."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from hear_m2d.utils.errors import InputError

MAX_MEMBERS = 100_000
MAX_SIZE = 64 * 2**30
MAX_RATIO = 100  # weights compress by a tenth; a bomb by a thousand
CHUNK = 2**20


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turn whatever the standard library trips over in a damaged archive into a ValueError."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError),
        *(LookupError, OverflowError, MemoryError, AttributeError),
    ) as error:
        why = ascii(str(error)[:200])[1:-1] or type(error).__name__
        raise InputError(f"{what} cannot be read: {why}") from error


@contextmanager
def open_archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        ValueError: Damaged, or of absurdly many members.
    """
    with _sentences("the zip"):
        archive = zipfile.ZipFile(file)
    with archive:
        if len(archive.infolist()) > MAX_MEMBERS:
            raise InputError(f"the zip has {len(archive.infolist())} members")
        yield archive


def torch_root(archive: zipfile.ZipFile) -> str | None:
    """Return the folder of a torch file's members (it ends in a slash), or None: a zip of something else."""
    names = set(archive.namelist())
    for name in archive.namelist():
        root, slash, last = name.rpartition("/")
        if last == "data.pkl" and slash and "/" not in root:
            marks = (f"{root}/version", f"{root}/.format_version", f"{root}/byteorder", f"{root}/data/0")
            if any(mark in names for mark in marks):
                return root + slash
    return None


def shown(name: str) -> str:
    """Return a member's name fit for a message."""
    return ascii(name[:200])[1:-1]


def read_stored(archive: zipfile.ZipFile, name: str, *, most: int) -> bytearray:
    """Read a member that is stored, not compressed, as every member of a torch file is.

    Args:
        archive: The zip.
        name: Of the member.
        most: Bytes that it may have.

    Raises:
        ValueError: Missing, compressed, encrypted, longer than ``most``, cut, or not matching its checksum.
    """
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise InputError(f"it has no member {shown(name)}") from error
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"its member {shown(name)} is compressed, which torch never does")
    if info.file_size > most:
        raise InputError(f"its member {shown(name)} has {info.file_size} bytes, more than {most}")
    # A stored member lies in the file as it is: no more can be allocated than the file has.
    if info.file_size > info.compress_size:
        raise InputError(
            f"its member {shown(name)} says that it has {info.file_size} bytes, which it has not"
        )
    with open_member(archive, info) as member:
        data = bytearray()
        while chunk := member.read(CHUNK):
            data += chunk
    if len(data) != info.file_size:
        raise InputError(f"its member {shown(name)} is cut: {len(data)} of {info.file_size} bytes")
    return data


@contextmanager
def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Open a member to read from its start.

    Raises:
        ValueError: Encrypted or damaged; also while reading.
    """
    with _sentences(f"its member {shown(info.filename)}"), archive.open(info) as member:
        yield member


@contextmanager
def spooled(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Give a member as a temporary file without a name, at its start.

    Raises:
        ValueError: Encrypted, damaged, more than the disk has room for, or of a size that cannot be true.
    """
    name = f"its member {shown(info.filename)}"
    if info.file_size > MAX_SIZE or info.file_size > MAX_RATIO * info.compress_size + CHUNK:
        raise InputError(f"{name} says that its {info.compress_size} bytes become {info.file_size}: refused")
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if info.file_size > room - CHUNK:
        raise InputError(
            f"{name} needs {info.file_size} bytes in {tempfile.gettempdir()}, which has {room}: unpack it"
        )
    with tempfile.TemporaryFile() as file:
        with open_member(archive, info) as member:
            while chunk := member.read(CHUNK):
                file.write(chunk)
        if file.tell() != info.file_size:
            raise InputError(f"{name} is cut: {file.tell()} of {info.file_size} bytes")
        file.seek(0)
        yield file
