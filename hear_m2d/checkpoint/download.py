"""Download the file of an address: ``https://`` into our cache, ``hf://`` into the hub's cache.

Our cache is the folder that HEAR_M2D_CACHE names, else the system's own for caches. Each pair of URL and
SHA-256 has a folder there, with a lock against two processes at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "HEAR_M2D_CACHE"
TIMEOUT_S = 30  # seconds without a byte
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
HIDDEN = re.compile(r"(^|/)(\.(?!\./)|__MACOSX/)")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_ADDRESS = re.compile(rf"(?i:hf)://(?P<repo>{REPO.pattern})(@(?P<revision>[^/]+))?(/(?P<file>[^/].*)?)?")
# Errors for the answers of a server; any other is a ConnectionError.
REFUSALS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}


def choose_weights(names: Iterable[str], source: object) -> str:
    """Return the checkpoint among the files of a folder, a zip or a repository.

    The files that are the least deep count; of these, ``checkpoint.safetensors``, or else the only one.

    Raises:
        InputError: There is none, or several.
    """
    weights = sorted(name for name in names if name.lower().endswith(WEIGHTS) and not HIDDEN.search(name))
    depth = min((name.count("/") for name in weights), default=0)
    weights = [name for name in weights if name.count("/") == depth]
    weights = [name for name in weights if name.rpartition("/")[2] == CHECKPOINT] or weights
    if not weights:
        raise InputError(f"{source} holds no file that ends in {', '.join(WEIGHTS)}")
    if len(weights) > 1:
        raise InputError(
            f"{source} holds several checkpoints: name one of {', '.join(map(ascii, weights[:9]))}"
        )
    return weights[0]


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
        InputError: Not an address, or the SHA-256 is not the given one; the file is not kept.
        OSError: The cache cannot be written.
    """
    import requests

    target = cached_path(url, sha256)
    if _is_whole(target, sha256):
        if sha256 is None:
            logger.info("%s has no checksum: the copy of an earlier download is used, %s", shown(url), target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.parent / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("another process is downloading %s: waiting for it", shown(url))
            lock.acquire()
        try:
            if not _is_whole(target, sha256):
                _download(url, target, sha256)
        finally:
            lock.release()
    except requests.HTTPError as error:
        status, reason = getattr(error.response, "status_code", 0), getattr(error.response, "reason", "")
        kind = REFUSALS.get(status, ConnectionError)
        raise kind(f"{shown(url)}: the server answered {status} {reason}") from error
    except requests.exceptions.InvalidURL as error:
        raise InputError(f"{shown(url)} is not an address: {error}") from error
    except requests.RequestException as error:
        cause: BaseException = error  # the outer errors repeat the address, which may contain secrets
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        raise ConnectionError(
            f"could not download {shown(url)} ({type(cause).__name__}: {cause}). Nothing was kept: check the "
            "address and the network, or download it by other means and give its path"
        ) from error
    except ValueError as error:  # of pooch, which names both sums
        raise InputError(f"{shown(url)}: {error}") from error
    except OSError as error:
        raise OSError(
            f"cannot write to the cache {cache_folder()}: {error.strerror or error}. Set {CACHE_VARIABLE} to "
            "a folder that can be written and has room"
        ) from error
    return target


def shown(url: str) -> str:
    """Return a URL for messages, without user, password and query, which may contain secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_whole(target: Path, sha256: str | None) -> bool:
    return target.is_file() and (sha256 is None or file_sha256(target) == sha256)


def _download(url: str, target: Path, sha256: str | None) -> None:
    """Download under a temporary name, which pooch replaces by the final one."""
    import pooch

    for leftover in target.parent.glob("tmp*"):  # of a process that was killed: it does not hold the lock
        leftover.unlink()
    logger.info("downloading %s to %s", shown(url), target)
    downloader = pooch.HTTPDownloader(
        chunk_size=2**20,
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},
        progressbar=sys.stderr.isatty(),
    )
    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # its INFO lines have the query
    try:
        pooch.retrieve(url, sha256, fname=target.name, path=target.parent, downloader=downloader)
    finally:
        log.setLevel(level)
    if sha256 is None:
        logger.info(
            "%s was not checked: add #sha256=%s to the address to accept no other file",
            shown(url),
            file_sha256(target),
        )


def fetch_from_hub(address: str) -> Path:
    """Return the file that ``hf://owner/repo[@revision][/file]`` names.

    Without a file it is the one that :func:`choose_weights` takes. A revision is a branch, a tag or a commit;
    a slash in it is written ``%2F``. What lies in the hub's cache is used without asking the hub.

    Raises:
        InputError: Not such an address, or no file or several to choose from.
        FileNotFoundError: No such repository, revision or file, or not in the cache while offline.
        PermissionError: A repository that must be asked for.
        ConnectionError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    match = HUB_ADDRESS.fullmatch(address)
    if not match:
        raise InputError(f"{address} is not an address on the hub: write hf://OWNER/REPO[/FILE]")
    repo, file = match["repo"], match["file"]
    revision = unquote(match["revision"]) if match["revision"] else None
    cached = None
    with suppress(OSError, ValueError, errors.HfHubHTTPError):  # not in the cache
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        cached = folder / (file or choose_weights(names, folder))
    if cached and cached.is_file():
        logger.info("%s is taken from the hub's cache; `hf download %s` updates it", address, repo)
        return cached
    with hub_errors(address):
        file = file or choose_weights(HfApi().list_repo_files(repo, revision=revision), address)
        return Path(hf_hub_download(repo, file, revision=revision))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Raise errors of huggingface_hub as Python's own classes, with its message in one line."""
    from huggingface_hub import errors

    missing = errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError
    kind: type[OSError]
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, errors.LocalEntryNotFoundError):  # offline, or the hub cannot be reached
            kind = ConnectionError
        elif isinstance(error, errors.GatedRepoError | PermissionError):
            kind = PermissionError
        elif isinstance(error, missing):
            kind = FileNotFoundError
        elif isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests")):
            kind = REFUSALS.get(status, ConnectionError)
        else:
            raise
        raise kind(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error
