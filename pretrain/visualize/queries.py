"""Which patches look: those asked for (`--query 1.2,440Hz`), or the loudest and some far from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hear_m2d.model.encoder import EncoderConfig, patchify
from hear_m2d.model.frontend import FrontendConfig, mel_edges
from hear_m2d.utils.errors import InputError

SPREAD = 2  # patches beside the loudest, unasked
CLASS = "class"


@dataclass(frozen=True)
class Point:
    """A query as typed.

    Attributes:
        text: As typed.
        time_s: Seconds from the file's start; None: the class token.
        mel: Mel bin, where that was given.
        hertz: Frequency, where that was given.
    """

    text: str
    time_s: float | None = None
    mel: int | None = None
    hertz: float | None = None


@dataclass(frozen=True)
class Query:
    """A token that looks at the others.

    Attributes:
        name: What it is, for people.
        token: Its index among the encoder's tokens.
        place: Row (from the lowest frequency) and column of its patch; None: the class token.
    """

    name: str
    token: int
    place: tuple[int, int] | None = None


def parse_query(text: str) -> Point:
    """Read ``TIME_S,MEL``, ``TIME_S,HERTZHz`` (or kHz), or ``class``.

    Raises:
        ValueError: It is none of them.
    """
    if text.strip().lower() == CLASS:
        return Point(CLASS)
    time, comma, height = (part.strip() for part in text.partition(","))
    unit = {"khz": 1000.0, "hz": 1.0}
    found = next((name for name in unit if height.lower().endswith(name)), "")
    try:
        if not comma:
            raise ValueError
        time_s, value = float(time), float(height[: len(height) - len(found)])
        if not (math.isfinite(time_s) and math.isfinite(value) and time_s >= 0 and value >= 0):
            raise ValueError
        if found:
            return Point(text, time_s, hertz=value * unit[found])
        return Point(text, time_s, mel=int(height))
    except ValueError as error:
        raise InputError(
            f"--query {text}: give TIME_S,MEL (1.2,40: the mel bin), TIME_S,HERTZ with its unit (1.2,440Hz), "
            f"or class"
        ) from error


def parse_indices(text: str | None, option: str, *, mean: bool = False) -> Any:
    """Read ``0,5,-1`` or ``all``; with ``mean``, also that word, which becomes None. Nothing gives ().

    Raises:
        ValueError: It is none of them.
    """
    if text is None:
        return ()
    if text.strip().lower() == "all":
        return "all"
    found: list[int | None] = []
    for part in text.split(","):
        word = part.strip().lower()
        try:
            found.append(None if mean and word == "mean" else int(word))
        except ValueError as error:
            words = "mean, all or numbers" if mean else "all or numbers"
            raise InputError(f"{option} {text}: give {words} from 0, with commas between them") from error
    return tuple(found)


def locate(
    point: Point, *, encoder: EncoderConfig, frontend: FrontendConfig, columns: int, start_s: float
) -> Query:
    """Return the patch under a point.

    Args:
        point: What was asked for.
        encoder: Sizes.
        frontend: The log-mel.
        columns: Whole patches of the window along time.
        start_s: Where the window begins in its file, seconds.

    Raises:
        ValueError: The point lies outside the window or the front end's range, or there is no class token.
    """
    first = int(encoder.class_token)
    if point.time_s is None:
        if not first:
            raise InputError("--query class: this encoder has no class token")
        return Query("class token", 0)
    high, wide = encoder.patch_size
    # Frame k is centred on k hops, and reaches half a hop to each side.
    column = int(((point.time_s - start_s) * 1000 / frontend.hop_ms + 0.5) // wide)
    if not 0 <= column < columns:
        end_s = start_s + columns * wide * frontend.hop_ms / 1000
        raise InputError(f"--query {point.text}: the part drawn goes from {start_s:g} to {end_s:g} seconds")
    bin_ = point.mel
    if point.hertz is not None:
        if not frontend.f_min <= point.hertz <= frontend.f_max:
            raise InputError(
                f"--query {point.text}: the front end hears {frontend.f_min:g} to {frontend.f_max:g} Hz"
            )
        centres = mel_edges(frontend)[1:-1]
        bin_ = round(float(np.interp(point.hertz, centres, np.arange(frontend.n_mels))))
    assert bin_ is not None
    if bin_ >= frontend.n_mels:
        raise InputError(f"--query {point.text}: mel bins go from 0 to {frontend.n_mels - 1}")
    return patch_query(
        "", bin_ // high, column, encoder=encoder, frontend=frontend, columns=columns, start_s=start_s
    )


def patch_query(
    what: str,
    row: int,
    column: int,
    *,
    encoder: EncoderConfig,
    frontend: FrontendConfig,
    columns: int,
    start_s: float,
) -> Query:
    """Return a patch as a query that says where it is."""
    high, wide = encoder.patch_size
    edges = mel_edges(frontend)
    low, top = edges[row * high], edges[(row + 1) * high + 1]
    begin = start_s + column * wide * frontend.hop_ms / 1000
    end = begin + wide * frontend.hop_ms / 1000
    where = f"{begin:.2f} to {end:.2f} s, {_hertz(low)} to {_hertz(top)}"
    token = int(encoder.class_token) + row * columns + column
    return Query(f"{what}: {where}" if what else where, token, (row, column))


def choose_queries(
    x: Tensor, *, encoder: EncoderConfig, frontend: FrontendConfig, start_s: float
) -> list[Query]:
    """Choose the class token, the loudest patch, and patches as far from it and from one another as can be.

    Only patches louder than the median are chosen: in silence there is nothing to look for.

    Args:
        x: The standardised window, (1, 1, mels, frames) in whole patches.
        encoder: Sizes.
        frontend: The log-mel.
        start_s: Where the window begins in its file, seconds.
    """
    rows, columns = encoder.grid[0], x.shape[-1] // encoder.patch_size[1]
    loud = patchify(x, encoder.patch_size)[0].mean(-1)  # (rows * columns,)
    index = torch.arange(rows * columns)
    places = torch.stack([(index // columns + 0.5) / rows, (index % columns + 0.5) / columns], dim=1)
    chosen = [int(loud.argmax())]
    quiet = loud <= loud.median()
    while len(chosen) < min(1 + SPREAD, rows * columns):
        distance = torch.cdist(places, places[chosen]).amin(1)  # to the nearest of those chosen
        distance[quiet] = -1.0
        best = int(distance.argmax())
        if distance[best] <= 0:
            break
        chosen.append(best)
    found = [Query("class token", 0)] if encoder.class_token else []
    for order, patch in enumerate(chosen):
        found.append(
            patch_query(
                "a patch far from it" if order else "the loudest patch",
                *divmod(patch, columns),
                encoder=encoder, frontend=frontend, columns=columns, start_s=start_s,
            )
        )  # fmt: skip
    return found


def _hertz(value: float) -> str:
    return f"{value / 1000:.1f} kHz" if value >= 1000 else f"{value:.0f} Hz"
