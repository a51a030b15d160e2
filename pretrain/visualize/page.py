"""``index.html``: the pictures and sounds of a call in one file; nothing is fetched, no script runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text, visible_names

PAGE = "index.html"
MARK = '<meta name="generator" content="hear-m2d visualize">'
TEMPLATE = "page.html.j2"


@dataclass
class Clip:
    """What was drawn of one file.

    Attributes:
        name: The file's name.
        part: Which part of it, a sentence.
        folder: Where its pictures and sounds lie.
        reconstruction: The picture of the reconstruction, if there is one.
        error: What the error is, a sentence.
        sounds: WAV files by title.
        attention: Pictures by the query's name.
    """

    name: str
    part: str
    folder: Path
    reconstruction: Path | None = None
    error: str = ""
    sounds: dict[str, Path] = field(default_factory=dict)
    attention: dict[str, Path] = field(default_factory=dict)


def claim_folder(out: Path) -> None:
    """Make sure that a folder is new, empty, or of an earlier call.

    Raises:
        ValueError: It is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder for --out")
    names = visible_names(out)
    page = out / PAGE
    if names and not (page.is_file() and MARK.encode() in page.read_bytes()[:1000]):
        raise InputError(f"{out} holds files of something else ({names[0]}): give an empty --out")


def write_page(
    out: Path,
    clips: Sequence[Clip],
    *,
    facts: Mapping[str, Any],
    left_out: Sequence[str] = (),
    done: bool = True,
) -> Path:
    """Write ``out/index.html``, pictures and sounds inside it.

    Args:
        out: The folder.
        clips: What was drawn.
        facts: What the template says of the model and of how to read the pictures.
        left_out: A sentence for each file that could not be drawn.
        done: Whether all was drawn; the page of a call that was interrupted says so.

    Returns:
        The page.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = inline
    template = (resources.files("hear_m2d.pretrain.visualize") / TEMPLATE).read_text(encoding="utf-8")
    html = environment.from_string(template).render(clips=clips, left_out=left_out, done=done, **facts)
    assert MARK in html
    atomic_write_text(out / PAGE, html)
    return out / PAGE


def inline(path: Path) -> str:
    """Return a PNG or WAV as a data URI."""
    kind = "image/png" if path.suffix == ".png" else "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
