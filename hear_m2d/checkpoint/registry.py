"""The table of weights by name: name → URL and SHA-256.

Ours is ``registry.json`` beside this file. A lab adds its own with a file of the same form, which the
environment variable HEAR_M2D_REGISTRY names. A row with a ``page`` and no ``url`` is for weights that must be
downloaded by hand: the authors' weights are under a license for evaluation only, which does not permit an
automatic download.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name

REGISTRY_VARIABLE = "HEAR_M2D_REGISTRY"
OURS = Path(__file__).with_name("registry.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")
URL = re.compile(r"(https?|file)://\S+")
AUTHORS_LICENSE = "NTT Software License Agreement for Evaluation"
AUTHORS_REPOSITORIES = re.compile(r"/+(nttcslab)/+(m2d|msm-mae)/.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """Where weights are, and their checksum.

    Attributes:
        url: http, https or file.
        sha256: Of the whole file, in lower-case hexadecimal digits.
        licence: Terms of the weights, logged when they are used.
        note: One sentence for users, also logged.
        page: Instead of the others: the page where a person can download the weights.
    """

    url: str = ""
    sha256: str = ""
    licence: str = ""
    note: str = ""
    page: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(getattr(self, field.name), str) for field in fields(self)):
            raise InputError("url, sha256, licence, note and page must be texts")
        if self.page and not self.url:
            return
        for name in ("url", "sha256"):
            if not getattr(self, name):
                raise InputError(f"{name} is missing")
        if not URL.fullmatch(self.url) or "#" in self.url:
            raise InputError(
                f"url is {self.url!r}; it must begin with https://, http:// or file:// and have no #"
            )
        if not SHA256.fullmatch(self.sha256.lower()):
            raise InputError(f"sha256 is {self.sha256!r}; it must be 64 hexadecimal digits")
        object.__setattr__(self, "sha256", self.sha256.lower())


def read_registry() -> dict[str, Entry]:
    """Return all named weights: ours, and those of the file that HEAR_M2D_REGISTRY names, which come first.

    Raises:
        FileNotFoundError: HEAR_M2D_REGISTRY does not name a file.
        ValueError: A malformed file; the message names it and the entry.
    """
    entries = read_entries(OURS)
    if value := os.environ.get(REGISTRY_VARIABLE):
        path = Path(value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{REGISTRY_VARIABLE} is {value!r}, which is not a file: unset it, or name a file"
            )
        entries |= read_entries(path)
    return entries


def read_entries(path: Path) -> dict[str, Entry]:
    """Read one table.

    Raises:
        ValueError: Not JSON, or a malformed entry; the message names the file and the entry.
    """
    try:
        table = json.loads(path.read_bytes().decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable registry of weights: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} is not a registry of weights: it holds a {type(table).__name__}")
    return {name: _entry(path, name, value) for name, value in table.items()}


def _entry(path: Path, name: str, value: Any) -> Entry:
    known = [field.name for field in fields(Entry)]
    try:
        if not NAME.fullmatch(name):
            raise InputError("a name is letters, digits and . _ @ + -, and begins with a letter or digit")
        if not isinstance(value, dict):
            raise InputError('an entry is an object: {"url": "https://…", "sha256": "…"}')
        for key in value:
            if key not in known:
                raise InputError(unknown_name("field", key, known))
        return Entry(**value)
    except InputError as error:
        raise InputError(f"{path}, entry {name!r}: {error}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object without equal keys; Python's JSON reader would keep the last one."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{key!r} is there twice")
    return dict(pairs)


def by_hand(name: str) -> str:
    """Return instructions for weights that we do not download; empty for any other name.

    Args:
        name: A name, its zip, a file of its folder, or an address with one of them.
    """
    for part in re.split(r"[/\\]", name):
        for known, entry in read_entries(OURS).items():
            if not entry.url and part.lower().removesuffix(".zip") == known.lower():
                return where_to_get(known, entry.page)
    return ""


def refusal_of_address(host: str, path: str) -> str:
    """Return instructions for an address in the authors' repositories; empty for any other address."""
    found = AUTHORS_REPOSITORIES.fullmatch(path)
    if host.lower() not in ("github.com", "www.github.com") or not found:
        return ""
    page = f"https://github.com/{found[1]}/{found[2]}/releases"
    return by_hand(path) or where_to_get(path.rpartition("/")[2], page)


def where_to_get(name: str, page: str) -> str:
    """Return the sentence that explains how to get the authors' weights."""
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
