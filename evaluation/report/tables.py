"""The report as tables: cells of text with their exact values, in Markdown, and in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from hear_m2d.evaluation.report.compare import Row, Summary, entry_means
from hear_m2d.evaluation.report.published import Column, leaderboard, leaderboard_source, paper_figures
from hear_m2d.evaluation.report.runs import Run

NONE = "–"
METRICS = {
    "top1_acc": "accuracy",
    "pitch_acc": "pitch accuracy",
    "aucroc": "AUC-ROC",
    "event_onset_200ms_fms": "onset F, 200 ms",
    "event_onset_50ms_fms": "onset F, 50 ms",
}
CSV_HEADS = (
    *("run", "task", "metric", "score", "fold_std", "folds", "rank", "entries", "normalized"),
    *("best", "best_model", "median", "seconds", "peak_memory_bytes", "grid", "grid_points", "sha256"),
    *("marks", "published_source"),
)
MARK = "†"
NOTES = (
    "Scores are percentages: 100 times what the official harness printed. Over folds, a score is the mean, "
    "and ± is the standard deviation of the folds.",
    "The rank is the place of a run among the leaderboard's entries and itself. Runs are not ranked against "
    "each other.",
    "The normalized score puts the lowest entry of the leaderboard at 0 and the highest at 100, for each "
    "task; the mean is over the tasks of the run that can be ranked. The place compares it with the entries "
    "that have all of these tasks.",
    f"{MARK} marks a run with other settings of the harness than published scores: another grid, or another "
    "number of grid points. Such scores are not comparable with published ones.",
    "A task that is not one of the 19 of HEAR 2021, that was altered, or of which a part is missing, has no "
    "rank.",
    "MSM-MAE has two published HEAR figures here, those of its paper's abstract; its paper has fifteen "
    "tasks. M2D has no published HEAR figures: its papers use another protocol (EVAR).",
)


@dataclass(frozen=True)
class Cell:
    """The shown text, the sort key, and the text on hover."""

    text: str
    value: float | str | None = None
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Named columns and rows; the published rows, if any, are kept apart from the measured ones."""

    heads: tuple[str, ...]
    measured: tuple[tuple[Cell, ...], ...]
    published: tuple[tuple[Cell, ...], ...] = ()


def overview(summaries: Sequence[Summary]) -> Table:
    """Return one row for each run."""
    heads = ("run", "ranked tasks", "mean rank", "mean normalized score", "place", "marks")
    rows = [
        (
            _run(each.run, each.marks),
            Cell(str(each.tasks), each.tasks),
            _number(each.mean_rank),
            _percent(each.mean_normalized),
            _place(each.place, each.entries),
            _word("; ".join(each.marks)),
        )
        for each in summaries
    ]
    return Table(heads, tuple(rows))


def details(rows: Sequence[Row]) -> Table:
    """Return one row for each task of each run."""
    heads = (
        "task",
        "run",
        "metric",
        "score",
        "rank",
        "normalized",
        "best",
        "median",
        "folds",
        "time",
        "marks",
    )
    return Table(heads, tuple(_detail(row) for row in rows))


def everything(runs: Sequence[Run], rows: Sequence[Row]) -> Table | None:
    """Return the runs and all published models, one column for each HEAR task that was run."""
    columns = [column for column in leaderboard().values() if any(row.column == column for row in rows)]
    if not columns:
        return None
    heads = ("model", *(column.title for column in columns), "mean normalized score")
    measured = []
    for run in runs:
        own = {row.column.task: row for row in rows if row.run == run.name and row.column is not None}
        if not own:
            continue
        cells = [_percent(own[c.task].score) if c.task in own else Cell(NONE) for c in columns]
        values = [row.normalized for row in own.values() if row.normalized is not None]
        mean = sum(values) / len(values) if len(values) == len(columns) else None
        measured.append((_run(run.name, run.marks), *cells, _percent(mean)))
    return Table(heads, tuple(measured), tuple(_published(columns)))


def markdown(title: str, summaries: Sequence[Summary], rows: Sequence[Row], table: Table | None) -> str:
    """Return the report as a Markdown document."""
    parts = [f"# {title}", _markdown_table(overview(summaries)), "## Tasks", _markdown_table(details(rows))]
    if table is not None:
        parts += [
            "## Beside the published figures",
            "Measured here:",
            _markdown_table(table, published=False),
        ]
        parts += ["Published:", _markdown_table(table, published=True)]
        sources = [leaderboard_source(), *dict.fromkeys(figure.source for figure in paper_figures())]
        parts.append("Sources of the published figures: " + "; ".join(sources) + ".")
    parts += ["## How to read this", "\n".join(f"- {note}" for note in NOTES)]
    return "\n\n".join(parts) + "\n"


def csv_text(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """Return one line for each task of each run, with exact values and the published ones beside them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADS)
    by_name = {run.name: run for run in runs}
    for row in rows:
        run, column = by_name[row.run], row.column
        best = column.figures[0] if column else None
        writer.writerow(
            [
                row.run,
                row.title,
                row.metric,
                row.score,
                row.spread,
                len(row.folds) or None,
                row.rank,
                len(column.figures) if column else None,
                row.normalized,
                best and best.score,
                best and best.model,
                column and column.median,
                row.seconds,
                row.peak_memory_bytes,
                run.harness["grid"],
                run.harness["grid_points"],
                run.model.get("sha256"),
                "; ".join(row.marks),
                best and best.source,
            ]
        )
    return out.getvalue()


def _detail(row: Row) -> tuple[Cell, ...]:
    column = row.column
    best = column.figures[0] if column else None
    low_high = f"{100 * min(row.folds):.1f} to {100 * max(row.folds):.1f}" if row.folds else ""
    folds = ", ".join(f"{100 * fold:.2f}" for fold in row.folds)
    return (
        _word(row.title),
        _run(row.run, row.run_marks),
        Cell(METRICS.get(row.metric, row.metric), row.metric, row.metric),
        _score(row.score, row.spread),
        _place(row.rank, len(column.figures) if column else 0),
        _percent(row.normalized),
        _percent(best.score, title=best.model) if best else Cell(NONE),
        _percent(column.median if column else None),
        Cell(f"{len(row.folds)}: {low_high}", len(row.folds), folds) if row.folds else Cell(NONE),
        _seconds(row),
        _word("; ".join(row.task_marks)),
    )


def _published(columns: Sequence[Column]) -> list[tuple[Cell, ...]]:
    """Return the entries of the leaderboard, the best mean first, and the figures from papers."""
    means = entry_means(columns)
    models: dict[str, str] = {}
    for column in columns:
        models |= {figure.model: f"{figure.date}; {figure.source}" for figure in column.figures}
    rows = []
    for model in sorted(models, key=lambda model: -means.get(model, float("-inf"))):
        scores = [_score(column.score_of(model)) for column in columns]
        rows.append((Cell(model, model, models[model]), *scores, _percent(means.get(model))))
    for model in dict.fromkeys(figure.model for figure in paper_figures()):
        own = {figure.task: figure for figure in paper_figures() if figure.model == model}
        if any(column.task in own for column in columns):
            scores = [_score(own[c.task].score) if c.task in own else Cell(NONE) for c in columns]
            rows.append((Cell(model, model, next(iter(own.values())).source), *scores, Cell(NONE)))
    return rows


def _markdown_table(table: Table, *, published: bool = False) -> str:
    rows = table.published if published else table.measured
    lines = ["| " + " | ".join(table.heads) + " |", "|" + " --- |" * len(table.heads)]
    lines += ["| " + " | ".join(cell.text.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _run(name: str, marks: Sequence[str]) -> Cell:
    return Cell(f"{name} {MARK}" if marks else name, name, "; ".join(marks))


def _word(text: str) -> Cell:
    return Cell(text, text)


def _number(value: float | None) -> Cell:
    return Cell(NONE) if value is None else Cell(f"{value:.1f}", value)


def _percent(value: float | None, title: str = "") -> Cell:
    return Cell(NONE) if value is None else Cell(f"{100 * value:.1f}", value, title or f"{100 * value:.4f}")


def _seconds(row: Row) -> Cell:
    if row.seconds is None:
        return Cell(NONE)
    memory = row.peak_memory_bytes
    title = "" if memory is None else f"peak memory {memory / 2**20:,.0f} MiB"
    return Cell(f"{row.seconds:,.0f} s", row.seconds, title)


def _score(score: float | None, spread: float | None = None) -> Cell:
    if score is None:
        return Cell(NONE)
    if spread is None:
        return _percent(score)
    exact = f"{100 * score:.4f} ± {100 * spread:.4f}"
    return Cell(f"{100 * score:.1f} ± {100 * spread:.1f}", score, exact)


def _place(place: int | None, entries: int) -> Cell:
    return Cell(NONE) if place is None else Cell(f"{place} of {entries + 1}", place)
