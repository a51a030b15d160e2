"""Read the checkpoint that a name, an address or a path means; download it if necessary.

The content of a file decides what it is, not its suffix.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hear_m2d.checkpoint.download import check_sha256, fetch, fetch_from_hub, shown
from hear_m2d.checkpoint.format import METADATA_KEY, Checkpoint, read_checkpoint
from hear_m2d.checkpoint.published import read_published
from hear_m2d.checkpoint.registry import SHA256, by_hand, read_registry, refusal_of_address
from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

DEFAULT = Path(__file__).with_name("default.safetensors")
NO_DEFAULT = (
    "there is no default checkpoint yet. Make one (hear-m2d pretrain --recipe laptop_m2d --data AUDIO_FOLDER "
    "--out RUN), or use one you have, and give its path: load_model('RUN/checkpoint.safetensors')"
)
WANTED = "give the path of a .safetensors of ours, of a .pth, or of a zip or folder with one of them"
SUFFIXES = (".safetensors", ".pth", ".pt", ".zip")
STRIPPED = (*SUFFIXES, ".ckpt")  # what a file of any of these contents is often called
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
MAX_HEADER = 100_000_000  # bytes: limit of the safetensors format
OLDER_PTH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # a pickle of its magic number
MAX_RATIO = 100  # weights compress by about a tenth, a zip bomb by a factor of a thousand


def read_weights(name: str | os.PathLike[str] = "", *, verify: bool | None = None) -> Checkpoint:
    """Read a checkpoint: an address, a path, or a name of the registry, in this order.

    Args:
        name: ``hf://owner/repo[@revision][/file]``; ``https://``, ``http://`` or ``file://``, each with
            ``#sha256=…`` at its end where the sum is known; a path; a name
            (:mod:`hear_m2d.checkpoint.registry`). A path object is always a path. Empty: the default
            checkpoint of this package.
        verify: Compare the SHA-256 of the tensors of our own files with the stored one; None: where a file is
            small, or has just been downloaded.

    Raises:
        FileNotFoundError: No such file, name or repository; the nearest names are shown.
        ConnectionError: What must be downloaded cannot be reached.
        ValueError: No name, or not a checkpoint.
    """
    if not os.fspath(name):
        if not DEFAULT.is_file():
            raise InputError(NO_DEFAULT)
        return read_checkpoint(DEFAULT, verify=verify)
    if isinstance(name, str) and (found := SCHEME.match(name)):
        return _read_address(name, found[1].lower(), verify)
    path = Path(name)
    if path.exists() or not isinstance(name, str):
        return read_local(path, verify=verify)
    registry = read_registry()
    if (entry := registry.get(name)) and entry.url:
        for text in filter(None, (entry.licence and f"licence {entry.licence}", entry.note)):
            logger.info("%s: %s", name, text)
        return _read_url(entry.url, entry.sha256, verify)
    if hint := by_hand(name):
        raise FileNotFoundError(hint)
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        return read_local(path)  # its error says that there is none
    near = difflib.get_close_matches(name, registry, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "No known name comes near it."
    names = sorted(known for known, entry in registry.items() if entry.url)
    known = f" Known: {', '.join(names)}." if names else ""
    raise FileNotFoundError(
        f"no checkpoint {name}: there is no such file. {hint}{known} Give a path, a name, https://… or "
        "hf://OWNER/REPO"
    )


def bare_name(name: str | os.PathLike[str]) -> str:
    """Return a short name for an argument of :func:`read_weights`, without folder and usual suffix."""
    text = os.fspath(name)
    if isinstance(name, str) and SCHEME.match(text):
        path = Path(re.split("[#?]", text)[0].rpartition("://")[2])  # a query may contain secrets
    else:
        path = Path(text)
        path = path.resolve() if path.name in ("", "..") else path
    return path.stem if path.suffix.lower() in STRIPPED else path.name


def read_local(path: str | os.PathLike[str], *, verify: bool | None = None) -> Checkpoint:
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
            return read_checkpoint(path, verify=verify)
        file.seek(0)
        if start.startswith(b"PK") and not _is_pth(file, path):
            return _in_zip(file, path)
    return read_published(path)


def _is_pth(file: IO[bytes], path: Path) -> bool:
    """Return whether a zip is one of torch's: a data.pkl in a folder with a version or storages."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
    marks = ("version", ".format_version", "byteorder", "data/0")
    return any(root + mark in names for root in roots if root + "data.pkl" in names for mark in marks)


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
    """Read the one checkpoint of a zip; no file is unpacked under its name."""
    file.seek(0)
    with _zip_errors(path), zipfile.ZipFile(file) as archive, tempfile.TemporaryFile() as member:
        members = [i for i in archive.infolist() if not i.is_dir() and not _hidden(Path(i.filename))]
        found = [info for info in members if _member_holds_checkpoint(archive, info)]
        if not found:
            raise InputError("it is a zip with neither a .pth nor a .safetensors of ours in it")
        if len(found) > 1:
            raise InputError(f"it {_several([info.filename for info in found])}")
        (info,) = found
        if info.file_size > MAX_RATIO * info.compress_size + 2**20:
            raise InputError(
                f"its member {_escaped(info.filename)} says that its {info.compress_size} bytes become "
                f"{info.file_size}: refused"
            )
        with archive.open(info) as compressed:
            while chunk := compressed.read(2**20):
                member.write(chunk)
        member.seek(0)
        start = member.read(9)
        member.seek(0)
        if _begins_safetensors(start):
            return read_checkpoint(path, data=member.read())
        return read_published(path, file=member, inside=_escaped(info.filename))


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """Name the zip in errors of the standard library about a damaged one."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path} is not a readable checkpoint: {str(error)[:200]}") from error


def _escaped(name: str) -> str:
    """Return a member's name, escaped for a message."""
    return ascii(name[:200])[1:-1]


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 9} more" if len(names) > 9 else ""
    return (
        f"holds {len(names)} checkpoints, {', '.join(map(_escaped, names[:9]))}{more}: give the path of one"
    )


def _hidden(path: Path) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)


def _holds_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if not _begins_checkpoint(file.read):
                return False
            file.seek(0)
            return file.read(2) != b"PK" or _is_pth(file, path)
    except (OSError, ValueError):  # reported, not passed over
        return path.suffix.lower() in SUFFIXES


def _member_holds_checkpoint(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(info) as member:
            return _begins_checkpoint(member.read)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError):  # reported, if it is the one
        return info.filename.lower().endswith(SUFFIXES)


def _begins_checkpoint(read: Callable[[int], bytes]) -> bool:
    """Return whether a file begins like a .pth, or like a .safetensors that is meant to be loaded."""
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
    """Judge by the header's length in eight bytes (small: its upper half is zero) and the JSON after it.

    The length's own first bytes may well be those of a zip or a pickle.
    """
    return start[4:9] == bytes(4) + b"{"


def _read_address(address: str, scheme: str, verify: bool | None) -> Checkpoint:
    """Read an address ``scheme://…``, with its SHA-256 if it ends in one."""
    url, mark, fragment = address.partition("#")
    key, _, digits = fragment.partition("=")
    sha256 = digits.lower() if mark else None
    if sha256 is not None and (key != "sha256" or not SHA256.fullmatch(sha256)):
        raise InputError(f"{shown(url)} ends in #{fragment}: a # is followed by sha256= and 64 hex digits")
    if scheme == "hf":
        path = fetch_from_hub(url)
        if sha256:
            check_sha256(path, sha256, url)
        return read_local(path, verify=verify)
    if scheme not in ("http", "https", "file"):
        raise InputError(f"{shown(url)} begins with {scheme}: an address begins with hf, https, http or file")
    return _read_url(url, sha256, verify)


def _read_url(url: str, sha256: str | None, verify: bool | None) -> Checkpoint:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the port is checked only on access
    except ValueError as error:
        raise InputError(f"{url.partition('?')[0]} is not an address: {error}") from error
    if parts.scheme.lower() == "file":
        if host not in (None, "localhost"):
            raise InputError(
                f"{url} names a host. An address of a local file has three slashes: file:///PATH"
            )
        if not parts.path:
            raise InputError(
                f"{url} names no file. An address of a local file has three slashes: file:///PATH"
            )
        path = Path(url2pathname(parts.path))
        if sha256 and path.is_file():
            check_sha256(path, sha256, str(path))
        return read_local(path, verify=verify)
    if not host or not all(0 < len(label) < 64 for label in host.rstrip(".").split(".")):
        raise InputError(f"{shown(url)} is not an address: it names no host")
    if refusal := refusal_of_address(host, parts.path):
        raise InputError(refusal)
    path = fetch(url, sha256)
    try:
        # With a checksum of the whole file, that of the tensors says nothing new.
        return read_local(path, verify=sha256 is None if verify is None else verify)
    except InputError as error:
        if sha256 is None:  # a page of HTML, for example, must not be the answer the next time too
            path.unlink(missing_ok=True)
        raise InputError(f"what {shown(url)} gave is not a checkpoint: {error}") from error
