"""The table of weights by name: name → URL and SHA-256.

Ours is ``registry.json`` beside this file. A lab adds its own with a file of the same form, which the
environment variable HEAR_M2D_REGISTRY names. A row with a ``page`` and no ``url`` is for weights that must be
downloaded by hand: the authors' weights are under a license for evaluation only, which does not permit an
automatic download.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name
from hear_m2d.utils.files import read_json

REGISTRY_VARIABLE = "HEAR_M2D_REGISTRY"
OURS = Path(__file__).with_name("registry.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
URL = re.compile(r"(https?|file)://[^\s#]+")
AUTHORS_LICENSE = "NTT Software License Agreement for Evaluation"
AUTHORS_REPOSITORIES = re.compile(r"/+(nttcslab)/+(m2d|msm-mae)/.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """Where weights are, and their checksum."""

    url: str = ""  # http, https or file
    sha256: str = ""  # of the whole file, in lower-case hexadecimal digits
    licence: str = ""  # terms of the weights, logged when they are used
    note: str = ""  # one sentence for users, also logged
    page: str = ""  # instead of the others: the page where a person can download the weights


def read_registry() -> dict[str, Entry]:
    """Return all named weights: ours, and those of the file that HEAR_M2D_REGISTRY names, which come first.

    Raises:
        FileNotFoundError: HEAR_M2D_REGISTRY does not name a file.
        InputError: A malformed file; the message names it and the entry.
    """
    entries = read_entries(OURS)
    if value := os.environ.get(REGISTRY_VARIABLE):
        path = Path(value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{REGISTRY_VARIABLE} is {value!r}, which is not a file")
        entries |= read_entries(path)
    return entries


def read_entries(path: Path) -> dict[str, Entry]:
    """Read one table."""
    return {name: _entry(f"{path}, entry {name!r}", value) for name, value in read_json(path).items()}


def _entry(where: str, value: Any) -> Entry:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InputError(f'{where}: an entry is an object of texts: {{"url": "https://…", "sha256": "…"}}')
    known = [field.name for field in fields(Entry)]
    for key in value.keys() - known:
        raise InputError(f"{where}: {unknown_name('field', key, known)}")
    entry = Entry(**value | {"sha256": value.get("sha256", "").lower()})
    if not entry.page and not (URL.fullmatch(entry.url) and SHA256.fullmatch(entry.sha256)):
        raise InputError(
            f"{where}: url must begin with https://, http:// or file:// and have no #, and sha256 must be 64 "
            f"hexadecimal digits; they are {entry.url!r} and {entry.sha256!r}"
        )
    return entry


def by_hand(text: str) -> str:
    """Return instructions for weights that we do not download; empty for any other name, path or address."""
    pages = {name.lower(): (name, entry.page) for name, entry in read_entries(OURS).items() if entry.page}
    for part in re.split(r"[/\\]", text.lower()):
        if known := pages.get(part.removesuffix(".zip")):
            return _where_to_get(*known)
    return ""


def refusal_of_address(host: str, path: str) -> str:
    """Return instructions for an address in the authors' repositories; empty for any other address."""
    match = AUTHORS_REPOSITORIES.fullmatch(path)
    if host.lower() not in ("github.com", "www.github.com") or not match:
        return ""
    page = f"https://github.com/{match[1]}/{match[2]}/releases"
    return by_hand(path) or _where_to_get(path.rpartition("/")[2], page)


def _where_to_get(name: str, page: str) -> str:
    return (
        f"{name} is one of the authors' weights. hear-m2d does not download them: they are under the "
        f"{AUTHORS_LICENSE}, for internal evaluation only. If you accept these terms, download it from "
        f"{page}; then load_model('FILE') loads it, and `hear-m2d convert FILE OUT.safetensors` makes one of "
        "ours of it"
    )


def is_authors_license(license: str) -> bool:
    """Return whether the terms of a checkpoint are the authors', which do not permit sharing."""
    text = " ".join(license.split()).lower()
    return "license agreement for evaluation" in text or ("ntt" in text.split() and "evaluation" in text)
