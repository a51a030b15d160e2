"""Names → checkpoints: what `load_model` was given, found, fetched where need be, and read."""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hear_m2d.checkpoint.authors import authors_names, authors_page, refusal_of_address, where_to_get
from hear_m2d.checkpoint.download import check_sha256, fetch, shown
from hear_m2d.checkpoint.format import Checkpoint
from hear_m2d.checkpoint.hub_files import fetch_from_hub
from hear_m2d.checkpoint.local import read_local
from hear_m2d.checkpoint.registry import SHA256, read_registry
from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

NO_DEFAULT = (
    "there is no default checkpoint yet. Make one (hear-m2d pretrain --recipe laptop_m2d --data AUDIO_FOLDER "
    "--out RUN), or use one you have, and give its path: load_model('RUN/checkpoint.safetensors')"
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".zip")
STRIPPED = (*SUFFIXES, ".ckpt")  # what a file of any of these contents is often called
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_weights(name: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: an address, a path, or a name of the registry, in this order.

    Args:
        name: ``hf://owner/repo[@revision][/file]``; ``https://``, ``http://`` or ``file://``, each with
            ``#sha256=…`` at its end where the sum is known; a path; a name
            (:mod:`hear_m2d.checkpoint.registry`). A path object is always a path.

    Raises:
        FileNotFoundError: No such file, name or repository; the nearest names are shown.
        ConnectionError: What must be downloaded cannot be reached.
        ValueError: No name, or not a checkpoint.
    """
    if not os.fspath(name):
        raise InputError(NO_DEFAULT)
    if isinstance(name, str) and (found := SCHEME.match(name)):
        return _read_address(name, found[1].lower())
    path = Path(name)
    if path.exists() or not isinstance(name, str):
        return read_local(path)
    registry = read_registry()
    if name in registry:
        entry = registry[name]
        for text in filter(None, (entry.licence and f"licence {entry.licence}", entry.note)):
            logger.info("%s: %s", name, text)
        return _read_url(entry.url, entry.sha256)
    if authors := authors_page(name):
        raise FileNotFoundError(where_to_get(*authors))
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        return read_local(path)  # which says that there is none
    near = difflib.get_close_matches(name, [*registry, *authors_names()], n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "No known name comes near it."
    known = f" Known: {', '.join(sorted(registry))}." if registry else ""
    raise FileNotFoundError(
        f"no checkpoint {name}: there is no such file. {hint}{known} Give a path, a name, https://… or "
        "hf://OWNER/REPO"
    )


def bare_name(name: str | os.PathLike[str]) -> str:
    """Return what to call a checkpoint by what :func:`read_weights` is given: no folder, no usual suffix."""
    text = os.fspath(name)
    if isinstance(name, str) and SCHEME.match(text):
        path = Path(re.split("[#?]", text)[0].rpartition("://")[2])  # a query may hold secrets
    else:
        path = Path(text)
        path = path.resolve() if path.name in ("", "..") else path
    return path.stem if path.suffix.lower() in STRIPPED else path.name


def _read_address(address: str, scheme: str) -> Checkpoint:
    """Read what stands behind ``scheme://``, with its SHA-256 if the address ends in one."""
    url, mark, fragment = address.partition("#")
    key, _, digits = fragment.partition("=")
    sha256 = digits.lower() if mark else None
    if sha256 is not None and (key != "sha256" or not SHA256.fullmatch(sha256)):
        raise InputError(f"{shown(url)} ends in #{fragment}: a # is followed by sha256= and 64 hex digits")
    if scheme == "hf":
        path = fetch_from_hub(url)
        if sha256:
            check_sha256(path, sha256, url)
        return read_local(path)
    if scheme not in ("http", "https", "file"):
        raise InputError(f"{shown(url)} begins with {scheme}: an address begins with hf, https, http or file")
    return _read_url(url, sha256)


def _read_url(url: str, sha256: str | None) -> Checkpoint:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the port is looked at only when asked for
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
        return read_local(path)
    if not host or not all(0 < len(label) < 64 for label in host.rstrip(".").split(".")):
        raise InputError(f"{shown(url)} is not an address: it names no host")
    if refusal := refusal_of_address(host, parts.path):
        raise InputError(refusal)
    path = fetch(url, sha256)
    try:
        return read_local(path)
    except ValueError as error:
        if sha256 is None:  # a page of HTML, say: what is no checkpoint must not answer for the address again
            path.unlink(missing_ok=True)
        raise InputError(f"what {shown(url)} gave is no checkpoint: {error}") from error
