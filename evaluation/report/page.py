"""The report as one HTML file that needs no network: tables, and one Plotly chart with Plotly inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from importlib.metadata import version
from typing import Any

from hear_m2d.evaluation.report.compare import Row, Summary
from hear_m2d.evaluation.report.published import (
    CHALLENGE,
    Figure,
    leaderboard,
    leaderboard_source,
    paper_figures,
)
from hear_m2d.evaluation.report.runs import Run
from hear_m2d.evaluation.report.tables import MARK, METRICS, NOTES, details, everything, overview

TEMPLATE = "page.html.j2"
COLORS = ("#e8590c", "#1c7ed6", "#2f9e44", "#ae3ec9", "#e0a100", "#0c8599", "#e64980", "#795548")
"""Legible on white and on a dark page."""
PUBLISHED = "#8a94a6"
ROW_HEIGHT, MARGIN_HEIGHT = 40, 130
Trace = dict[str, Any]


def render(title: str, runs: Sequence[Run], summaries: Sequence[Summary], rows: Sequence[Row]) -> str:
    """Return the page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        runs=runs,
        overview=overview(summaries),
        details=details(rows),
        everything=everything(runs, rows),
        chart=chart(runs, rows),
        notes=NOTES,
        sources=[leaderboard_source(), *dict.fromkeys(figure.source for figure in paper_figures())],
        version=version("hear-m2d"),
        plotly=get_plotlyjs(),
    )


def chart(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Return data and layout for Plotly: one line for each task, with its entries and the runs marked."""
    titles = list(dict.fromkeys(row.title for row in rows if row.score is not None))
    heights = {title: -place for place, title in enumerate(titles)}
    traces = list(_published_traces(heights))
    drawn = [run for run in runs if any(row.run == run.name and row.score is not None for row in rows)]
    for place, run in enumerate(drawn):
        own = [row for row in rows if row.run == run.name and row.score is not None]
        shift = 0.5 * ((place + 0.5) / len(drawn) - 0.5) if len(drawn) > 1 else 0.0
        marker = {"color": COLORS[place % len(COLORS)], "size": 13, "line": {"width": 2}}
        marker["symbol"] = ["diamond-open" if row.marks else "diamond" for row in own]
        hovers = [_hover_row(row) for row in own]
        ys = [heights[row.title] - shift for row in own]
        traces.append(
            _trace(
                f"{run.name} {MARK}" if run.marks else run.name,
                [row.score or 0.0 for row in own],
                ys,
                hovers,
                marker,
            )
        )
    layout = {
        "height": MARGIN_HEIGHT + ROW_HEIGHT * len(titles),
        "margin": {"l": 10, "r": 16, "t": 10, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#1d2433", "font": {"color": "#ffffff"}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        "xaxis": {
            "title": {"text": "score, %"},
            "range": [-3, max([103.0, *(score + 3 for trace in traces for score in trace["x"])])],
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {
            "tickvals": list(heights.values()),
            "ticktext": [escape(title) for title in titles],
            "range": [0.6 - len(titles), 0.6],
            "automargin": True,
            "zeroline": False,
            "fixedrange": True,
        },
    }
    return {"data": traces, "layout": layout}


def _published_traces(heights: dict[str, int]) -> Iterator[Trace]:
    columns = [column for column in leaderboard().values() if column.title in heights]
    entries = [(heights[column.title], figure) for column in columns for figure in column.figures]
    challenge = [(y, figure) for y, figure in entries if figure.date == CHALLENGE]
    later = [(y, figure) for y, figure in entries if figure.date != CHALLENGE]
    titles = {column.task: heights[column.title] for column in columns}
    papers = [(titles[figure.task], figure) for figure in paper_figures() if figure.task in titles]
    looks = (
        ("HEAR 2021 entries", challenge, {"symbol": "circle", "size": 7, "opacity": 0.55}),
        ("later leaderboard entries", later, {"symbol": "circle-open", "size": 7, "line": {"width": 1.5}}),
        (
            "figures from papers",
            papers,
            {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": PUBLISHED}},
        ),
    )
    for name, points, marker in looks:
        if points:
            # Neighbors on the score axis get different heights, so that fewer points hide each other.
            ys = [y + 0.08 * (place * 2 % 5 - 2) for place, (y, _) in enumerate(points)]
            figures = [figure for _, figure in points]
            hovers = [_hover_figure(figure) for figure in figures]
            marker = {"color": PUBLISHED, **marker}
            yield _trace(name, [figure.score for figure in figures], ys, hovers, marker)


def _trace(
    name: str, scores: list[float], ys: list[float], hovers: list[str], marker: dict[str, Any]
) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(name),
        "x": [100 * score for score in scores],
        "y": ys,
        "hovertext": hovers,
        "hoverinfo": "text",
        "marker": marker,
    }


def _hover_figure(figure: Figure) -> str:
    metric = METRICS.get(figure.metric, figure.metric)
    lines = [f"<b>{escape(figure.model)}</b>", f"{metric} {100 * figure.score:.4f}"]
    return "<br>".join([*lines, f"published: {figure.date or 'paper'}"])


def _hover_row(row: Row) -> str:
    spread = "" if row.spread is None else f" ± {100 * row.spread:.4f}"
    lines = [f"<b>{escape(row.run)}</b>, measured", escape(row.title)]
    lines.append(f"{escape(METRICS.get(row.metric, row.metric))} {100 * (row.score or 0.0):.4f}{spread}")
    if row.column is not None:
        lines.append(f"rank {row.rank} of {len(row.column.figures) + 1}")
    return "<br>".join([*lines, *(escape(mark) for mark in row.marks)])
