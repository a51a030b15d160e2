"""A path on this machine → a checkpoint: a file, a zip or a folder, whatever it is called.

What lies there follows from its content, not from its suffix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from zipfile import ZipFile, ZipInfo

from hear_m2d.checkpoint.archive import open_archive, open_member, shown, spooled, torch_root
from hear_m2d.checkpoint.format import METADATA_KEY, Checkpoint, read_checkpoint
from hear_m2d.checkpoint.published import read_published
from hear_m2d.utils.errors import InputError

WANTED = "give the path of a .safetensors of ours, of a .pth, or of a zip or folder with one of them"
SUFFIXES = (".pth", ".pt", ".safetensors")
MAX_HEADER = 100_000_000  # of a safetensors file, by its own rules
OLDER_PTH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # a pickle of its magic number


def read_local(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint by its path: our ``.safetensors``, a published ``.pth``, a zip or folder with one.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or several.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}: {WANTED}")
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: {WANTED}")
    with path.open("rb") as file:
        start = file.read(9)
        if not start:
            raise InputError(f"{path} is empty")
        if _begins_safetensors(start) or not start.startswith((b"PK", b"\x80")):
            return read_checkpoint(path)
        file.seek(0)
        if start.startswith(b"PK") and not _is_pth(file, path):
            return _in_zip(file, path)
    return read_published(path)


def _is_pth(file: IO[bytes], path: Path) -> bool:
    try:
        with open_archive(file) as archive:
            return torch_root(archive) is not None
    except ValueError as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error


def _in_folder(folder: Path) -> Path:
    """Return the one checkpoint of a folder, or of the folders in it where it holds none itself.

    Raises:
        ValueError: None, or several.
    """
    if (folder / "data.pkl").is_file():
        raise InputError(f"{folder} is an unpacked .pth: zip it again, or give the .pth itself")
    for pattern in ("*", "*/*"):
        paths = sorted(p for p in folder.glob(pattern) if p.is_file() and not _hidden(p.relative_to(folder)))
        if found := [path for path in paths if _holds_checkpoint(path)]:
            if len(found) > 1:
                raise InputError(f"{folder} {_several([str(p.relative_to(folder)) for p in found])}")
            return found[0]
    raise InputError(f"{folder} is not a file, but a folder without a checkpoint: {WANTED}")


def _in_zip(file: IO[bytes], path: Path) -> Checkpoint:
    """Read the one checkpoint of a zip."""
    file.seek(0)
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(open_archive(file))
            members = [i for i in archive.infolist() if not i.is_dir() and not _hidden(Path(i.filename))]
            found = [info for info in members if _member_holds_checkpoint(archive, info)]
            if not found:
                raise InputError("it is a zip with neither a .pth nor a .safetensors of ours in it")
            if len(found) > 1:
                raise InputError(f"it {_several([info.filename for info in found])}")
            member = opened.enter_context(spooled(archive, found[0]))
            start = member.read(9)
            member.seek(0)
        except ValueError as error:
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error
        if _begins_safetensors(start):
            return read_checkpoint(path, data=member.read())
        return read_published(path, file=member, inside=shown(found[0].filename))


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 9} more" if len(names) > 9 else ""
    return f"holds {len(names)} checkpoints, {', '.join(map(shown, names[:9]))}{more}: give the path of one"


def _hidden(path: Path) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)


def _holds_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if not _begins_checkpoint(file.read):
                return False
            file.seek(0)
            return file.read(2) != b"PK" or _is_pth(file, path)
    except (OSError, ValueError):  # to be said, not to be passed over
        return path.suffix.lower() in SUFFIXES


def _member_holds_checkpoint(archive: ZipFile, info: ZipInfo) -> bool:
    try:
        with open_member(archive, info) as member:
            return _begins_checkpoint(member.read)
    except ValueError:
        return info.filename.lower().endswith(SUFFIXES)


def _begins_checkpoint(read: Callable[[int], bytes]) -> bool:
    """Tell by its beginning whether a file is a .pth, or a .safetensors that is meant to be loaded."""
    start = read(len(OLDER_PTH))
    if not _begins_safetensors(start):
        return start.startswith(b"PK\x03\x04") or start == OLDER_PTH
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        return False
    try:
        header = json.loads(start[8:] + read(length - len(start[8:])))
        return METADATA_KEY in header["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _begins_safetensors(start: bytes) -> bool:
    """Tell by the header's length in eight bytes (small: its upper half is zero) and the JSON after it.

    The length's own first bytes may well be those of a zip or a pickle.
    """
    return start[4:9] == bytes(4) + b"{"
