"""The pictures: the reconstruction in four panels, and one query's attention by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from hear_m2d.model.frontend import mel_edges
from hear_m2d.pretrain.visualize.queries import Query, Window
from hear_m2d.utils.files import atomic_write

HERTZ = (100, 500, 1000, 2000, 4000, 8000, 16000)
MASKED_COLOR = "#c9ced8"
ATTENTION_COLOR = (1.0, 0.35, 0.05)  # over the gray log-mel
QUERY_COLOR = "#00c2ff"  # the outline of the query's own patch
DPI = 100


def draw_reconstruction(panels: dict[str, Tensor], picture: Path, window: Window) -> None:
    """Draw a 2 by 2 of spectrograms, (mels, frames) by title, standardized; nan is masked.

    The last one is an error.
    """
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    values = [panel.numpy() for panel in panels.values()]
    low, high = np.nanpercentile(values[0], [1, 99.5])
    for number, (axis, name, value) in enumerate(zip(axes, panels, values, strict=True)):
        is_error = number == len(values) - 1
        colors: dict[str, Any] = {"vmin": low, "vmax": max(high, low + 1e-3), "cmap": "magma"}
        if is_error:
            colors = {"vmin": 0, "vmax": 2, "cmap": "viridis"}
        image = axis.imshow(value, **_frame(value.shape[1], window), **colors)
        axis.set_facecolor(MASKED_COLOR)
        axis.set_title(name, fontsize=11, loc="left")
        if number % 2:  # the first panels of both rows share their scale with those beside them
            bar = figure.colorbar(image, ax=axis, shrink=0.9, pad=0.01)
            bar.ax.tick_params(labelsize=8)
            bar.set_label("absolute error" if is_error else "log-mel", fontsize=8)
        if number >= 2:
            axis.set_xlabel("seconds", fontsize=9)
        if number % 2 == 0:
            axis.set_ylabel("Hz", fontsize=9)
        _hertz_ticks(axis, window)
    _save(figure, picture)


def draw_attention(
    logmel: Tensor,
    maps: Tensor,
    query: Query,
    picture: Path,
    *,
    layers: Sequence[int],
    heads: Sequence[int | None],
    window: Window,
) -> None:
    """Draw one query's attention: a row for each layer, a column for each head, over the log-mel in gray.

    Args:
        logmel: Standardized, (mels, frames) in whole patches.
        maps: Attention over the encoder's tokens, (layers, heads of the encoder, tokens).
        query: The query.
        picture: The PNG.
        layers: Block indices, for the titles.
        heads: Head indices; None: the mean over all heads.
        window: Position of the log-mel.
    """
    encoder = window.encoder
    high, wide = encoder.patch_size
    # The log-mel at 0 … 0.7: attention must be brighter than the loudest sound.
    low, loud = np.percentile(logmel.numpy(), [1, 99.5])
    gray = np.clip((logmel.numpy() - low) / max(loud - low, 1e-6), 0, 1) * 0.7
    panel = max(1.9, min(3.6, 0.0145 * window.columns * wide)), 1.2
    figure, axes = _grid(len(layers), len(heads), panel)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            axis = axes[row, column]
            weights = maps[row].mean(0) if head is None else maps[row, head]
            on_patches = weights[int(encoder.class_token) :].reshape(-1, window.columns).numpy()
            shown = on_patches.repeat(high, 0).repeat(wide, 1)
            strength = _strength(shown, even=1 / len(weights))[..., None]
            mixed = gray[..., None] * (1 - strength) + np.array(ATTENTION_COLOR) * strength
            axis.imshow(mixed, **_frame(shown.shape[1], window), interpolation="nearest")
            if query.patch is not None:
                _outline(axis, query.patch, window)
            title = f"max {100 * float(on_patches.max()):.1f} %"
            if encoder.class_token:
                title += f", class {100 * float(weights[0]):.0f} %"
            axis.set_title(title, fontsize=7, loc="left", pad=2)
            axis.tick_params(labelsize=7)
            _hertz_ticks(axis, window, few=True)
            if row == 0:
                name = "mean over heads" if head is None else f"head {head}"
                axis.annotate(
                    name, (0.5, 1), (0, 16), xycoords="axes fraction", textcoords="offset points",
                    ha="center", fontsize=9, fontweight="bold", annotation_clip=False,
                )  # fmt: skip
            if column == 0:
                axis.set_ylabel(f"block {layer}", fontsize=9, fontweight="bold")
    axes[-1, 0].set_xlabel("seconds", fontsize=8, loc="left", labelpad=1)
    _save(figure, picture)


def _grid(rows: int, columns: int, panel: tuple[float, float]) -> tuple[Figure, NDArray[Any]]:
    """Return panels of that size (inches) at fixed places; a layout engine takes longer than the drawing."""
    left, right, top, bottom, beside, between = 0.75, 0.1, 0.5, 0.45, 0.18, 0.28
    width = left + columns * panel[0] + (columns - 1) * beside + right
    height = top + rows * panel[1] + (rows - 1) * between + bottom
    figure = Figure(figsize=(width, height))
    axes: NDArray[Any] = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False,
        gridspec_kw={
            "left": left / width, "right": 1 - right / width, "top": 1 - top / height,
            "bottom": bottom / height, "wspace": beside / panel[0], "hspace": between / panel[1],
        },
    )  # fmt: skip
    return figure, axes


def _strength(shares: NDArray[np.float32], *, even: float) -> NDArray[np.float64]:
    """Scale attention to 0 … 0.9: what exceeds an even share, relative to the largest (at least four shares).

    The square root keeps small weights visible beside one patch with most of the attention.
    """
    largest = max(float(shares.max()), 4 * even)
    scaled: NDArray[np.float64] = 0.9 * np.sqrt(np.clip((shares - even) / (largest - even), 0, 1))
    return scaled


def _outline(axis: Axes, patch: tuple[int, int], window: Window) -> None:
    high, wide = window.encoder.patch_size
    hop_s = window.frontend.hop_ms / 1000
    corner = (window.start_s + (patch[1] * wide - 0.5) * hop_s, patch[0] * high - 0.5)
    axis.add_patch(Rectangle(corner, wide * hop_s, high, fill=False, edgecolor=QUERY_COLOR, linewidth=1.6))


def _frame(frames: int, window: Window) -> dict[str, Any]:
    """Return the extent of an image: frame k is centered on k hops, mel bin m on m."""
    start_s, hop_s = window.start_s, window.frontend.hop_ms / 1000
    extent = (start_s - 0.5 * hop_s, start_s + (frames - 0.5) * hop_s, -0.5, window.frontend.n_mels - 0.5)
    return {"origin": "lower", "aspect": "auto", "extent": extent}


def _hertz_ticks(axis: Axes, window: Window, *, few: bool = False) -> None:
    centers = mel_edges(window.frontend)[1:-1]
    wanted = (100, 1000, 4000, 16000) if few else HERTZ
    shown = [hertz for hertz in wanted if centers[0] <= hertz <= centers[-1] * 1.06]
    labels = [f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in shown]
    axis.set_yticks(np.interp(shown, centers, np.arange(window.frontend.n_mels)), labels)
    axis.tick_params(labelsize=7 if few else 8)


def _save(figure: Figure, picture: Path) -> None:
    with atomic_write(picture) as file:
        # Without the program's version in it: the same network and clip give the same bytes.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
