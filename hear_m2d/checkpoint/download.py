"""A URL → a file in the cache: downloaded once, checked, whole or not there at all.

The cache is the folder that HEAR_M2D_CACHE names, else the system's own for caches. Each pair of URL and
SHA-256 has a folder there, with a lock against two processes at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write, file_sha256, remove_leftovers

logger = logging.getLogger(__name__)

VARIABLE = "HEAR_M2D_CACHE"
TIMEOUT_S = 30  # without a single byte


def cache_folder() -> Path:
    """Return the folder that downloads go to; it need not exist."""
    if value := os.environ.get(VARIABLE):
        return Path(value).expanduser()
    import pooch

    return Path(pooch.os_cache("hear-m2d")).expanduser()


def cached_path(url: str, sha256: str | None = None) -> Path:
    """Return where a URL's file lies once it is downloaded.

    The last two parts of its path stay: a published file's name, or its folder's, says the sample rate.
    """
    parts = [re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in unquote(urlsplit(url).path).split("/")]
    names = [part.lstrip(".")[-100:] for part in parts if part.strip(".")][-2:]
    return _folder(url, sha256).joinpath(*(names or ["weights"]))


def fetch(url: str, sha256: str | None = None) -> Path:
    """Return a URL's file, from the cache or else downloaded into it.

    Args:
        url: http or https.
        sha256: Of the whole file, 64 lower-case hexadecimal digits; None: not checked here.

    Returns:
        Its path in the cache.

    Raises:
        FileNotFoundError: The server has no such file.
        PermissionError: The server does not give it.
        ConnectionError: The server cannot be reached, or stopped half way.
        ValueError: Not the SHA-256 that was promised; nothing is kept.
        OSError: The cache cannot be written.
    """
    target = cached_path(url, sha256)
    if _is_there(target, sha256):
        return target
    with _locked(_folder(url, sha256), url):
        if not _is_there(target, sha256):  # another process may just have brought it
            if target.exists():
                logger.warning("%s is damaged, and downloaded again", target)
                target.unlink()
            _download(url, target, sha256)
    return target


def shown(url: str) -> str:
    """Return a URL as it may be printed: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_sha256(path: Path, sha256: str, source: str) -> None:
    """Hold a file against its SHA-256.

    Raises:
        ValueError: Another one; the message names both.
    """
    found = file_sha256(path)
    if found != sha256:
        raise InputError(_mismatch(source, found, sha256))


def _folder(url: str, sha256: str | None) -> Path:
    return cache_folder() / hashlib.sha256(f"{url}#{sha256 or ''}".encode()).hexdigest()[:16]


def _is_there(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or file_sha256(path) == sha256)


def _mismatch(source: str, found: str, wanted: str) -> str:
    return (
        f"{source} is not the file it should be: its SHA-256 is {found}, not {wanted}. It was damaged on "
        "the way, or it is another file now"
    )


@contextmanager
def _locked(folder: Path, url: str) -> Iterator[None]:
    """Hold a folder of the cache; wait where another process holds it."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("another process is downloading %s: waiting for it", shown(url))
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OSError(_unwritable(error)) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, target: Path, sha256: str | None) -> None:
    import pooch
    import requests

    promised: list[str | None] = []

    def announce(response: requests.Response, **_: Any) -> None:
        if response.is_redirect:
            return
        if response.status_code != HTTPStatus.OK:
            raise requests.HTTPError(response=response)
        promised.append(response.headers.get("content-length"))
        size = f"{int(promised[-1]) / 1e6:.1f} MB" if promised[-1] else "unknown size"
        logger.info("downloading %s (%s) to %s", shown(url), size, target)

    downloader = pooch.HTTPDownloader(
        chunk_size=2**20,
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": announce},
    )
    try:
        remove_leftovers(target.parent)  # of a process that was killed: the lock says that none is at work
        with atomic_write(target) as file:
            sink = _Sink(file)
            downloader(url, sink, None)
            if promised and promised[-1] and int(promised[-1]) != sink.size:
                raise ConnectionError(
                    f"{shown(url)} broke off after {sink.size} of {promised[-1]} bytes. Nothing was kept: "
                    "try again"
                )
            if sha256 is not None and sink.sha256.hexdigest() != sha256:
                raise InputError(
                    f"{_mismatch(shown(url), sink.sha256.hexdigest(), sha256)}. Nothing was kept"
                )
    except requests.HTTPError as error:
        raise _refusal(url, error.response.status_code if error.response is not None else 0) from error
    except requests.RequestException as error:
        raise ConnectionError(
            f"could not download {shown(url)} ({_reason(error)}). Nothing was kept: check the address and "
            "the network, or download it by other means and give its path"
        ) from error
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(_unwritable(error)) from error


class _Sink:
    """What the downloader writes to: a file that counts and hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> int:
        self.size += len(chunk)
        self.sha256.update(chunk)
        return self.file.write(chunk)

    def flush(self) -> None:
        self.file.flush()


def _refusal(url: str, status: int) -> OSError:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    answer = f"{shown(url)}: the server answered {status} {phrase}".rstrip()
    if status in (404, 410):
        return FileNotFoundError(f"{answer}. Check the address")
    if status in (401, 403):
        return PermissionError(f"{answer}. Download it by other means and give its path")
    return ConnectionError(f"{answer}. Try again later")


def _reason(error: BaseException) -> str:
    """Return the innermost cause, in words: what wraps it repeats the address, and names objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = re.sub(r"<[^>]*>:? ?", "", str(error)).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unwritable(error: BaseException) -> str:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (
        f"cannot write to the cache {cache_folder()}: {why}. Set {VARIABLE} to a folder that can be written "
        "and has room"
    )
