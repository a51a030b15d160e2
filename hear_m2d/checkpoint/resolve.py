"""Read the checkpoint that a name, an address or a path means; download it if necessary.

The content of a file decides what it is, not its suffix.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hear_m2d.checkpoint.download import choose_weights, fetch, fetch_from_hub, shown
from hear_m2d.checkpoint.format import Checkpoint, read_checkpoint
from hear_m2d.checkpoint.published import read_published
from hear_m2d.checkpoint.registry import SHA256, by_hand, read_registry, refusal_of_address
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256

logger = logging.getLogger(__name__)

DEFAULT = Path(__file__).with_name("default.safetensors")
SUFFIXES = (".safetensors", ".pth", ".pt", ".zip", ".ckpt")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
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
        InputError: No name, or not a checkpoint.
    """
    if not os.fspath(name):
        return read_checkpoint(DEFAULT, verify=verify)
    if isinstance(name, str) and (match := SCHEME.match(name)):
        return _read_address(name, match[1].lower(), verify)
    path = Path(name)
    if path.exists() or not isinstance(name, str):
        return read_local(path, verify=verify)
    registry = read_registry()
    if (entry := registry.get(name)) and entry.url:
        for text in filter(None, (entry.licence and f"license {entry.licence}", entry.note)):
            logger.info("%s: %s", name, text)
        return _read_url(entry.url, entry.sha256, verify)
    if instructions := by_hand(name):
        raise FileNotFoundError(instructions)
    near = difflib.get_close_matches(name, registry, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(
        f"no checkpoint {name}: there is no such file.{hint} Give a path, a name, https://… or hf://OWNER/REPO"
    )


def bare_name(name: str | os.PathLike[str]) -> str:
    """Return a short name for an argument of :func:`read_weights`, without folder and usual suffix."""
    text = os.fspath(name)
    if isinstance(name, str) and SCHEME.match(text):
        path = Path(re.split("[#?]", text)[0].rpartition("://")[2])  # a query may contain secrets
    else:
        path = Path(text)
        path = path.resolve() if path.name in ("", "..") else path
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def read_local(path: str | os.PathLike[str], *, verify: bool | None = None) -> Checkpoint:
    """Read a checkpoint by its path: our ``.safetensors``, a published ``.pth``, a zip or folder with one.

    Raises:
        FileNotFoundError: No such file.
        InputError: Not a checkpoint, or several.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file()]
        path = path / choose_weights((file.relative_to(path).as_posix() for file in files), path)
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint {path}: give a .safetensors of ours, a .pth, or a zip or folder with one of them"
        )
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise InputError(f"{path} is empty")
    # A safetensors file begins with the length of its header, whose first bytes may be those of a zip.
    if start[4:9] == bytes(4) + b"{" or not start.startswith((b"PK", b"\x80")):
        return read_checkpoint(path, verify=verify)
    return _read_zip(path, verify) if start.startswith(b"PK") else read_published(path)


def _read_zip(path: Path, verify: bool | None) -> Checkpoint:
    """Read a .pth, or unpack the one checkpoint of another zip and read that; not under its own name."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        unpacked = Path(folder, "checkpoint")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
                    return read_published(path)
                info = archive.getinfo(choose_weights(names, path))
                if info.file_size > MAX_RATIO * info.compress_size + 2**20:
                    raise InputError(
                        f"{path}: {info.filename!a} would become {info.file_size} bytes: refused"
                    )
                with archive.open(info) as member, unpacked.open("wb") as file:
                    shutil.copyfileobj(member, file, 2**20)
        except InputError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
            raise InputError(f"{path} is not a readable checkpoint: {str(error)[:200]}") from error
        if info.filename.lower().endswith(".safetensors"):
            return dataclasses.replace(read_checkpoint(unpacked, verify=verify), path=path)
        return read_published(path, member=ascii(info.filename[:200])[1:-1], unpacked=unpacked)


def _read_address(address: str, scheme: str, verify: bool | None) -> Checkpoint:
    """Read an address ``scheme://…``, with its SHA-256 if it ends in one."""
    url, mark, fragment = address.partition("#")
    sha256 = fragment.removeprefix("sha256=").lower() if mark else None
    if sha256 is not None and not (fragment.startswith("sha256=") and SHA256.fullmatch(sha256)):
        raise InputError(f"{shown(url)} ends in #{fragment}: a # is followed by sha256= and 64 hex digits")
    if scheme == "hf":
        return _read_checked(fetch_from_hub(url), sha256, verify)
    if scheme not in ("http", "https", "file"):
        raise InputError(f"{shown(url)} begins with {scheme}: an address begins with hf, https, http or file")
    return _read_url(url, sha256, verify)


def _read_url(url: str, sha256: str | None, verify: bool | None) -> Checkpoint:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise InputError(f"{url.partition('?')[0]} is not an address: {error}") from error
    if parts.scheme.lower() == "file":
        if host not in ("", "localhost") or not parts.path:
            raise InputError(f"{url} is not an address of a local file: it has three slashes, file:///PATH")
        return _read_checked(Path(url2pathname(parts.path)), sha256, verify)
    if refusal := refusal_of_address(host, parts.path):
        raise InputError(refusal)
    path = fetch(url, sha256)
    try:
        # With a checksum of the whole file, that of the tensors says nothing new.
        return read_local(path, verify=sha256 is None if verify is None else verify)
    except InputError as error:
        if sha256 is None:  # a page of HTML, for example, must not be the answer the next time too
            path.unlink(missing_ok=True)
        raise InputError(f"{shown(url)} did not give a checkpoint: {error}") from error


def _read_checked(path: Path, sha256: str | None, verify: bool | None) -> Checkpoint:
    if sha256 and path.is_file() and (actual := file_sha256(path)) != sha256:
        raise InputError(f"{path} is not the expected file: its SHA-256 is {actual}, not {sha256}")
    return read_local(path, verify=verify)
