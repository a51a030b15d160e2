"""Download the file of an address: ``https://`` into our cache, ``hf://`` into the hub's cache.

Our cache is the folder that HEAR_M2D_CACHE names, else the system's own for caches. Each pair of URL and
SHA-256 has a folder there, with a lock against two processes at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "HEAR_M2D_CACHE"
TIMEOUT_S = 30  # seconds without a byte
CHECKPOINT = "checkpoint.safetensors"
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_ADDRESS = re.compile(rf"(?i:hf)://(?P<repo>{REPO.pattern})(@(?P<revision>[^/]+))?(/(?P<file>[^/].*)?)?")


def cache_folder() -> Path:
    """Return the folder that downloads go to; it need not exist."""
    if value := os.environ.get(CACHE_VARIABLE):
        return Path(value).expanduser()
    import pooch

    return Path(pooch.os_cache("hear-m2d")).expanduser()


def cached_path(url: str, sha256: str | None = None) -> Path:
    """Return where the file of a URL lies once it is downloaded.

    The last two parts of its path are kept: a published file's or its folder's name states the sample rate.
    """
    parts = [re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in unquote(urlsplit(url).path).split("/")]
    names = [part.lstrip(".")[-100:] for part in parts if part.strip(".")][-2:]
    folder = cache_folder() / hashlib.sha256(f"{url}#{sha256 or ''}".encode()).hexdigest()[:16]
    return folder.joinpath(*(names or ["weights"]))


def fetch(url: str, sha256: str | None = None) -> Path:
    """Return the file of a URL, from the cache or else downloaded into it.

    Args:
        url: http or https.
        sha256: Of the whole file, 64 lower-case hexadecimal digits; None: any file is accepted, and the
            cached copy is never replaced.

    Returns:
        Its path in the cache.

    Raises:
        FileNotFoundError: The server has no such file.
        PermissionError: The server refuses access.
        ConnectionError: The server cannot be reached, or stopped before the end.
        InputError: The SHA-256 is not the given one; the file is not kept.
        OSError: The cache cannot be written.
    """
    target = cached_path(url, sha256)
    if target.is_file() and (sha256 is None or file_sha256(target) == sha256):
        if sha256 is None:
            logger.info("%s has no checksum: the copy of an earlier download is used, %s", shown(url), target)
        return target
    with _locked(target.parent, url):
        if not target.is_file() or (sha256 is not None and file_sha256(target) != sha256):
            _download(url, target, sha256)
    return target


def shown(url: str) -> str:
    """Return a URL for messages, without user, password and query, which may contain secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_sha256(path: Path, sha256: str, source: str) -> None:
    """Raise an InputError if a file has another SHA-256; the message has both."""
    actual = file_sha256(path)
    if actual != sha256:
        raise InputError(
            f"{source} is not the file it should be: its SHA-256 is {actual}, not {sha256}. It was damaged "
            "on the way, or it is another file now"
        )


@contextmanager
def _locked(folder: Path, url: str) -> Iterator[None]:
    """Lock a folder of the cache; wait if another process holds the lock."""
    import filelock

    with _cache_errors():
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("another process is downloading %s: waiting for it", shown(url))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url: str, target: Path, sha256: str | None) -> None:
    """Download under a temporary name, which pooch replaces by the final one."""
    import pooch
    import requests

    def announce(response: requests.Response, **_: Any) -> None:
        if response.is_redirect:
            return
        if response.status_code != HTTPStatus.OK:
            raise requests.HTTPError(response=response)
        length = response.headers.get("content-length")
        size = f"{int(length) / 1e6:.1f} MB" if length else "unknown size"
        logger.info("downloading %s (%s) to %s", shown(url), size, target)

    downloader = pooch.HTTPDownloader(
        chunk_size=2**20,
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": announce},
    )
    target.unlink(missing_ok=True)
    for rest in target.parent.glob(
        "tmp*"
    ):  # of a process that was killed: the lock says that none works here
        rest.unlink()
    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # its INFO lines have the query
    try:
        with _cache_errors():
            pooch.retrieve(url, None, fname=target.name, path=target.parent, downloader=downloader)
            if sha256 is not None:
                check_sha256(target, sha256, shown(url))
    except requests.HTTPError as error:
        raise _refusal(url, error.response.status_code if error.response is not None else 0) from error
    except requests.RequestException as error:
        raise ConnectionError(
            f"could not download {shown(url)} ({_reason(error)}). Nothing was kept: check the address and "
            "the network, or download it by other means and give its path"
        ) from error
    except InputError as error:
        target.unlink()
        raise InputError(f"{error}. Nothing was kept") from error
    finally:
        log.setLevel(level)
    if sha256 is None:
        logger.info(
            "%s was not checked: add #sha256=%s to the address to accept no other file",
            *(shown(url), file_sha256(target)),
        )


def _refusal(url: str, status: int) -> OSError:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    answer = f"{shown(url)}: the server answered {status} {phrase}".rstrip()
    if status in (404, 410):
        return FileNotFoundError(f"{answer}. Check the address")
    if status in (401, 403):
        return PermissionError(f"{answer}. Download it by other means and give its path")
    return ConnectionError(f"{answer}. Try again later")


def _reason(error: BaseException) -> str:
    """Return the message of the innermost cause; the outer errors repeat the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = re.sub(r"<[^>]*>:? ?", "", str(error)).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _cache_errors() -> Iterator[None]:
    import requests

    try:
        yield
    except requests.RequestException:  # also an OSError
        raise
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise OSError(
            f"cannot write to the cache {cache_folder()}: {why}. Set {CACHE_VARIABLE} to a folder that can "
            "be written and has room"
        ) from error


def fetch_from_hub(address: str) -> Path:
    """Return the file that ``hf://owner/repo[@revision][/file]`` names.

    Without a file it is ``checkpoint.safetensors``, or else the only ``.safetensors`` or ``.pth`` file. A
    revision is a branch, a tag or a commit; a slash in it is written ``%2F``. What lies in the hub's cache is
    used without asking the hub.

    Raises:
        InputError: Not such an address, or several files to choose from.
        FileNotFoundError: No such repository, revision or file, or not in the cache while offline.
        PermissionError: A repository that must be asked for.
        ConnectionError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    parsed = HUB_ADDRESS.fullmatch(address)
    if not parsed:
        raise InputError(
            f"{address} is not an address on the hub: write hf://OWNER/REPO or hf://OWNER/REPO/FILE"
        )
    repo, file = parsed["repo"], parsed["file"]
    revision = unquote(parsed["revision"]) if parsed["revision"] else None
    if cached := _cached_weights(repo, file, revision):
        logger.info("%s is taken from the hub's cache; `hf download %s` updates it", address, repo)
        return cached
    with hub_errors(address):
        if not file:
            weights = _weights(HfApi().list_repo_files(repo, revision=revision))
            if not weights:
                raise FileNotFoundError(f"{address} holds no .safetensors and no .pth file")
            if len(weights) > 1:
                raise InputError(
                    f"{address} holds several files, {', '.join(weights)}: name one, hf://{repo}/{weights[0]}"
                )
            (file,) = weights
        return Path(hf_hub_download(repo, file, revision=revision))


def _cached_weights(repo: str, file: str | None, revision: str | None) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError, errors.HfHubHTTPError):  # not in the cache
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = [name for name in names if name == file] if file else _weights(names)
    return folder / found[0] if len(found) == 1 else None


def _weights(names: Iterable[str]) -> list[str]:
    """Return ``checkpoint.safetensors`` alone if it is there, else all files of weights."""
    weights = sorted(name for name in names if name.lower().endswith((".safetensors", ".pth")))
    return [CHECKPOINT] if CHECKPOINT in weights else weights


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Raise errors of huggingface_hub as this package's classes, with its message in one line."""
    from huggingface_hub import errors

    missing = errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError
    try:
        yield
    except (InputError, FileNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ConnectionError(f"{what}: {_one_line(error)}") from error
        raise
    except (errors.GatedRepoError, PermissionError) as error:
        raise PermissionError(f"{what}: {_one_line(error)}") from error
    except missing as error:
        raise FileNotFoundError(f"{what}: {_one_line(error)}") from error
    except errors.HfHubHTTPError as error:
        refused = getattr(error.response, "status_code", 0) in (401, 403)
        raise (PermissionError if refused else ConnectionError)(f"{what}: {_one_line(error)}") from error
    except Exception as error:
        # The errors of its HTTP client (which one depends on its version) share no class with Python's.
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
            "httpx",
            "httpx2",
            "requests",
        ):
            raise ConnectionError(f"{what}: {_one_line(error)}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
