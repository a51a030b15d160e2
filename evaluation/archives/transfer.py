"""One file over HTTP: resumed with range requests, retried, and checked against its size and MD5.

Other libraries were tried. pooch starts again at the first byte after each failure. fsspec stops when a
connection breaks, and reports 429 and 503 as a missing file. Both accept a file that the server cut short.
``requests`` gives the status and the headers that the rules below need; urllib3, which it uses, compares the
number of bytes with the announced length and parses ``Retry-After``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from hear_m2d.evaluation.archives.catalog import RemoteFile
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.progress import ProgressBar

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

CHUNK = 2**14  # bytes; an incomplete chunk is lost when the connection breaks
TIMEOUT_S = (30, 60)  # seconds to connect, and seconds without a byte
MAX_FAILURES = 8  # failed requests in a row, without a new byte
FIRST_WAIT_S = 1.0  # wait after the first failure; doubled after each further one in a row
LONGEST_WAIT_S = 600.0


class _Interrupted(Exception):  # noqa: N818
    """A request that may succeed if it is repeated."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch_file(remote: RemoteFile, target: Path) -> Path:
    """Download a file, or the rest of it.

    The bytes go to ``<target>.part``, which a later call continues. A file whose size or MD5 is wrong is
    downloaded once more from its start.

    Args:
        remote: Where the file is, and its size and MD5 where they are known.
        target: Where the file goes; if it exists, nothing is done.

    Returns:
        ``target``.

    Raises:
        InputError: The server does not have the file, or refuses it.
        WorkFailedError: The server cannot be reached, stays interrupted, or gives a damaged file twice.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for _ in range(2):
        _fetch_bytes(remote, part)
        damage = find_damage(part, size=remote.size, md5=remote.md5)
        if not damage:
            return part.replace(target)
        logger.warning("%s %s: it was removed", remote.name, damage)
        part.unlink()
    raise WorkFailedError(f"{remote.url} was downloaded twice, and both times it {damage}")


def find_damage(path: Path, *, size: int | None, md5: str | None) -> str:
    """Return how a file differs from its size and MD5, or an empty string."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"has {actual} bytes instead of {size}"
    if md5 is None:
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if digest == md5 else f"has the MD5 {digest} instead of {md5}"


def _fetch_bytes(remote: RemoteFile, part: Path) -> None:
    """Request the file, or the missing part, until it is complete."""
    import requests

    breaks = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    failures, best = 0, _size(part)
    with (
        requests.Session() as session,
        ProgressBar(total=remote.size, initial=best, unit="B", unit_scale=True, desc=remote.name) as bar,
    ):
        while remote.size is None or _size(part) != remote.size:
            try:
                _request(session, remote, part, bar)
                return
            except breaks as error:
                problem = _Interrupted(_innermost(error))
            except requests.RequestException as error:
                raise InputError(f"{remote.url} cannot be requested: {error}") from error
            except _Interrupted as error:
                problem = error
            failures = failures + 1 if _size(part) <= best else 1
            best = max(best, _size(part))
            if failures >= MAX_FAILURES:
                raise WorkFailedError(
                    f"{remote.url}: {problem}, {failures} times in a row. {best} bytes are kept: "
                    "the same command continues"
                )
            wait_s = problem.wait_s or FIRST_WAIT_S * 2 ** (failures - 1)
            if wait_s > LONGEST_WAIT_S:
                raise WorkFailedError(f"{remote.url}: {problem}; the server asks to wait {wait_s:.0f} s")
            logger.info("%s: %s; next try in %.0f s", remote.name, problem, wait_s)
            time.sleep(wait_s)


def _request(session: requests.Session, remote: RemoteFile, part: Path, bar: ProgressBar) -> None:
    """Make one request and append its bytes; return only if the file is as long as the server says."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the file, not of a compressed one
    if have:
        headers["Range"] = f"bytes={have}-"
    with session.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        status = response.status_code
        content_range = response.headers.get("Content-Range", "")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if content_range == f"bytes */{have}":  # nothing is missing
                return
            part.unlink(missing_ok=True)
            raise _Interrupted(f"the server has no byte {have}: starting again")
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise _refusal(response)
        if status == HTTPStatus.PARTIAL_CONTENT:
            answer = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
            if answer is None or int(answer[1]) != have:
                part.unlink(missing_ok=True)
                raise _Interrupted("the server answered with another range: starting again")
            total = int(answer[2]) if answer[2] != "*" else None
        else:  # the server ignores ranges: it sends the file from its start
            have = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        bar.total = remote.size or total
        bar.n = have
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise _Interrupted(f"the connection ended after {_size(part)} of {total} bytes")


def _refusal(response: requests.Response) -> Exception:
    from urllib3.util import Retry

    status, url = response.status_code, response.url
    answer = f"the server answered {status} {response.reason or ''}".rstrip()
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        after = response.headers.get("Retry-After")
        try:
            return _Interrupted(answer, Retry().parse_retry_after(after) if after else None)
        except Exception:  # urllib3's own error for a header that is neither a date nor a number
            return _Interrupted(answer)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return InputError(f"{url}: {answer}. Check --base-url")
    return InputError(f"{url}: {answer}. Download the archive by other means, then use --from")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _innermost(error: BaseException) -> str:
    """Return the innermost cause of an error of requests; the outer errors repeat the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"
