"""``index.html``: the table, the loss curves, the pictures and the commands, in one file.

The page needs no network: curves are inline SVG, pictures are data URIs.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import table
from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html.j2")
INK = "#010203"  # stands for the page's own text color until the SVG is in the page
COLORS = {"m2d": "#2f6fde", "msm_mae": "#d9722b"}
HEALTH = {"target_std": "target: standard deviation", "target_cosine": "target: cosine between tokens"}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read a run's ``metrics.jsonl``; a half-written last line is left out."""
    rows = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one number, where it was logged."""
    found = [(row["step"], row[key]) for row in metrics if row.get(key) is not None and "step" in row]
    return [float(step) for step, _ in found], [float(value) for _, value in found]


def curve(lines: dict[str, tuple[list[float], list[float]]], *, title: str, color: str) -> str:
    """Return one small chart as inline SVG in the page's own text color.

    Args:
        lines: Steps and values by label; one without a label needs no legend.
        title: Written above the chart.
        color: Of the first line; the second is dashed.
    """
    parts = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    look: dict[Any, Any] = dict.fromkeys(parts, INK)
    look |= {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with mpl.rc_context(look):
        figure = Figure(figsize=(4.0, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for (label, (steps, values)), style in zip(lines.items(), ("-", "--"), strict=False):
            axes.plot(steps, values, style, label=label, color=color, linewidth=1.6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def curves(out: Path) -> list[str]:
    """Return the charts: each run's loss, and the metrics that show a collapse of M2D's target."""
    charts = []
    for run, color in COLORS.items():
        metrics = read_metrics(out / run)
        charts.append(
            curve({"loss": series(metrics, "loss")}, title=f"{table.MODELS[run]}: loss", color=color)
        )
        health = {label: series(metrics, key) for key, label in HEALTH.items()}
        health = {label.removeprefix("target: "): line for label, line in health.items() if line[0]}
        if health:
            charts.append(curve(health, title=f"{table.MODELS[run]}: target tokens", color=color))
    return charts


def picture(path: Path) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def write_page(out: Path, *, facts: dict[str, Any]) -> Path:
    """Write ``out/index.html`` from the results of the commands in ``out``.

    Args:
        out: The demo's folder: ``m2d``, ``msm_mae``, ``eval``, ``pictures``.
        facts: ``corpus``, ``hardware``, ``commands`` (text and seconds), ``failed`` (those of them that
            ended with exit code 1), ``validator``, ``tasks_dir``, ``about_tasks`` (a sentence by task
            folder), ``total_s``.

    Returns:
        The page.
    """
    results = table.read_results(out / "eval")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = table.number
    environment.filters["clock"] = clock
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        models=list(table.MODELS.values()),
        rows=table.rows(results, Path(facts["tasks_dir"])),
        about_metrics=table.ABOUT,
        problems=table.problems(results),
        curves=curves(out),
        pictures=[
            (path.parent.name, picture(path))
            for path in sorted((out / "pictures").glob("*/reconstruction.png"))
        ],
        harness=results["m2d"]["harness"],
        environment=results["m2d"]["environment"],
        **facts,
    )
    page = out / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def clock(seconds: float) -> str:
    """Format a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
