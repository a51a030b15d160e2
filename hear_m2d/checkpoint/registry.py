"""The table of weights by name: name → URL and SHA-256.

Ours is ``registry.json`` beside this file. A lab adds its own with a file of the same form, which the
environment variable HEAR_M2D_REGISTRY names.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hear_m2d.utils.errors import InputError, unknown_name

VARIABLE = "HEAR_M2D_REGISTRY"
OURS = Path(__file__).with_name("registry.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")
URL = re.compile(r"(https?|file)://\S+")


@dataclass(frozen=True)
class Entry:
    """Where weights are, and how to know them.

    Attributes:
        url: http, https or file.
        sha256: Of the whole file, in lower-case hexadecimal digits.
        licence: Terms of the weights, said when they are downloaded.
        note: One sentence for people, said likewise.
    """

    url: str
    sha256: str
    licence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in (self.url, self.sha256, self.licence, self.note)):
            raise InputError("url, sha256, licence and note are texts")
        if not URL.fullmatch(self.url) or "#" in self.url:
            raise InputError(f"url is {self.url!r}; it begins with https://, http:// or file:// and has no #")
        if not SHA256.fullmatch(self.sha256.lower()):
            raise InputError(f"sha256 is {self.sha256!r}; it is 64 hexadecimal digits")
        object.__setattr__(self, "sha256", self.sha256.lower())


def read_registry() -> dict[str, Entry]:
    """Return every named weight: ours, and over them those of the file that HEAR_M2D_REGISTRY names.

    Raises:
        FileNotFoundError: HEAR_M2D_REGISTRY names no file.
        ValueError: A malformed file; the message names it and the entry.
    """
    entries = read_entries(OURS)
    if value := os.environ.get(VARIABLE):
        path = Path(value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{VARIABLE} is {value!r}, which is no file: unset it, or name a file")
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
        raise InputError(f"{path} is not a registry of weights: it holds a {type(table).__name__}, no object")
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
        for key in ("url", "sha256"):
            if key not in value:
                raise InputError(f"{key} is missing")
        return Entry(**value)
    except ValueError as error:
        raise InputError(f"{path}, entry {name!r}: {error}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; JSON itself would quietly keep the last of two equal keys."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{key!r} stands there twice")
    return dict(pairs)
