"""Which patches to draw the attention of: those asked for (`--query 1.2,440Hz`), or a choice."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hear_m2d.model.encoder import EncoderConfig, patchify
from hear_m2d.model.frontend import FrontendConfig, mel_edges
from hear_m2d.utils.errors import InputError

SPREAD = 2  # patches beside the loudest, by default
_POINT = re.compile(
    r"\s*(?P<time>\d+\.?\d*)\s*,\s*((?P<value>\d+\.?\d*)\s*(?P<unit>k?hz)|(?P<mel>\d+))\s*", re.I
)


@dataclass(frozen=True)
class Point:
    """A query as typed."""

    text: str
    time_s: float | None = None  # from the file's start; None: the class token
    mel: int | None = None  # mel bin, if that was given
    hertz: float | None = None  # frequency, if that was given


@dataclass(frozen=True)
class Query:
    """A token whose attention is drawn."""

    name: str  # for the page
    token: int  # its index among the encoder's tokens
    patch: tuple[int, int] | None = None  # its row (from the lowest frequency) and column; or the class token


@dataclass(frozen=True)
class Window:
    """Where the drawn window lies."""

    encoder: EncoderConfig
    frontend: FrontendConfig
    columns: int  # whole patches along time
    start_s: float = 0.0  # where it begins in its file

    @property
    def patch_s(self) -> float:
        """Length of a patch, seconds."""
        return self.encoder.patch_size[1] * self.frontend.hop_ms / 1000


def parse_query(text: str) -> Point:
    """Read ``TIME_S,MEL``, ``TIME_S,HERTZHz`` (or kHz), or ``class``."""
    if text.strip().lower() == "class":
        return Point(text)
    match = _POINT.fullmatch(text)
    if match is None:
        raise InputError(
            f"--query {text}: give TIME_S,MEL (1.2,40: the mel bin), TIME_S,HERTZ with its unit (1.2,440Hz), "
            f"or class"
        )
    if match["mel"]:
        return Point(text, float(match["time"]), mel=int(match["mel"]))
    unit = 1000.0 if match["unit"].lower() == "khz" else 1.0
    return Point(text, float(match["time"]), hertz=float(match["value"]) * unit)


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Read ``0,5,-1``, or ``all``, which gives (); without a text, None."""
    if text is None or text.strip().lower() == "all":
        return None if text is None else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--layers {text}: give all, or numbers from 0 separated by commas") from error


def locate(point: Point, window: Window) -> Query:
    """Return the patch at a point; an InputError if it lies outside, or if there is no class token."""
    encoder, frontend = window.encoder, window.frontend
    if point.time_s is None:
        if not encoder.class_token:
            raise InputError("--query class: this encoder has no class token")
        return Query("class token", 0)
    # Frame k is centered on k hops, and reaches half a hop to each side.
    frame = (point.time_s - window.start_s) * 1000 / frontend.hop_ms + 0.5
    column = int(frame // encoder.patch_size[1])
    if not 0 <= column < window.columns:
        end_s = window.start_s + window.columns * window.patch_s
        raise InputError(
            f"--query {point.text}: the window goes from {window.start_s:g} to {end_s:g} seconds"
        )
    mel = point.mel
    if point.hertz is not None:
        if not frontend.f_min <= point.hertz <= frontend.f_max:
            raise InputError(
                f"--query {point.text}: the front end covers {frontend.f_min:g} to {frontend.f_max:g} Hz"
            )
        centers = mel_edges(frontend)[1:-1]
        mel = round(float(np.interp(point.hertz, centers, np.arange(frontend.n_mels))))
    assert mel is not None
    if mel >= frontend.n_mels:
        raise InputError(f"--query {point.text}: mel bins go from 0 to {frontend.n_mels - 1}")
    return patch_query("", mel // encoder.patch_size[0], column, window)


def patch_query(what: str, row: int, column: int, window: Window) -> Query:
    """Return a patch as a query whose name has its time and frequencies."""
    high = window.encoder.patch_size[0]
    edges = mel_edges(window.frontend)
    low, top = edges[row * high], edges[(row + 1) * high + 1]
    begin = window.start_s + column * window.patch_s
    name = f"{begin:.2f} to {begin + window.patch_s:.2f} s, {_hertz(low)} to {_hertz(top)}"
    token = int(window.encoder.class_token) + row * window.columns + column
    return Query(f"{what}: {name}" if what else name, token, (row, column))


def choose_queries(x: Tensor, window: Window) -> list[Query]:
    """Choose the class token, the loudest patch, and patches far from it and from one another.

    Only patches louder than the median are chosen, not silence. ``x`` is the standardized window,
    (1, 1, mels, frames) in whole patches.
    """
    rows, columns = window.encoder.grid[0], window.columns
    loud = patchify(x, window.encoder.patch_size)[0].mean(-1)  # (rows * columns,)
    index = torch.arange(rows * columns)
    centers = torch.stack([(index // columns + 0.5) / rows, (index % columns + 0.5) / columns], dim=1)
    chosen = [int(loud.argmax())]
    quiet = loud <= loud.median()
    while len(chosen) < min(1 + SPREAD, rows * columns):
        distance = torch.cdist(centers, centers[chosen]).amin(1)  # to the nearest chosen one
        distance[quiet] = -1.0
        farthest = int(distance.argmax())
        if distance[farthest] <= 0:
            break
        chosen.append(farthest)
    queries = [Query("class token", 0)] if window.encoder.class_token else []
    for order, patch in enumerate(chosen):
        what = "a patch far from it" if order else "the loudest patch"
        queries.append(patch_query(what, *divmod(patch, columns), window))
    return queries


def _hertz(value: float) -> str:
    return f"{value / 1000:.1f} kHz" if value >= 1000 else f"{value:.0f} Hz"
