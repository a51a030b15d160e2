"""Curves of pretraining runs side by side, from their metrics.jsonl: the picture of docs/results.md.

python benchmarks/curves.py RUN [RUN …] --out curves.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hear_m2d.utils.files import atomic_write

Line = Mapping[str, Any]
METERS = {
    "loss": "loss (each objective's own)",
    "grad_norm": "gradient norm",
    "latent_std": "spread of the encoder's tokens",
    "latent_cosine": "mean cosine of the encoder's tokens",
    "rankme": "RankMe",
    "target_std": "spread of M2D's target tokens",
    "target_cosine": "mean cosine of M2D's target tokens",
}
COLUMNS = 3


def read(run: Path) -> list[Line]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def panels(logs: Mapping[str, Sequence[Line]]) -> dict[str, str]:
    """Return the title of each panel by its key in the log: the meters, then the probes that were asked."""
    asked = {key for lines in logs.values() for line in lines for key in line if key.startswith("probe/")}
    probes = {key: " ".join(key.split("/")[1:]) for key in sorted(asked)}
    return {**METERS, **probes}


def draw(logs: Mapping[str, Sequence[Line]], out: Path) -> None:
    """Write one PNG with a panel for each meter and probe."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    titles = panels(logs)
    rows = -(-len(titles) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 2.1 * rows), squeeze=False, layout="constrained")
    for (key, title), ax in zip(titles.items(), axes.flat, strict=False):
        for name, lines in logs.items():
            points = [(line["step"], line[key]) for line in lines if key in line]
            ax.plot(*zip(*points, strict=True) if points else ((), ()), label=name, linewidth=1.2)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    for ax in list(axes.flat)[len(titles) :]:
        ax.axis("off")
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("step", fontsize=9)
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=100)


def main() -> None:
    """Draw the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    options = parser.parse_args()
    try:
        draw({run.name: read(run) for run in options.runs}, options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"these are not logs of runs: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
