"""Write the report of some runs: a page, Markdown, CSV."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from hear_m2d.evaluation.report.compare import compare, summarize
from hear_m2d.evaluation.report.runs import read_runs
from hear_m2d.evaluation.report.tables import csv_text, everything, markdown
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text

logger = logging.getLogger(__name__)


def write_report(
    arguments: Sequence[str], *, html: Path | None = None, md: Path | None = None, table: Path | None = None
) -> str:
    """Put runs beside the published HEAR figures.

    Args:
        arguments: The runs: each a `results.json`, a folder that holds one, or `NAME=` before either.
        html: Where to write the page.
        md: Where to write the Markdown document.
        table: Where to write the CSV file.

    Returns:
        The Markdown document.

    Raises:
        ImportError: If Jinja2 or Plotly is not installed and a page is asked for.
        InputError: If something is not a `results.json`, holds no task, or two runs have one name.
    """
    runs = read_runs(arguments)
    if empty := [run for run in runs if not run.tasks]:
        raise InputError(f"{empty[0].path} holds no task yet")
    by_run = {run.name: compare(run) for run in runs}
    rows = sorted(itertools.chain(*by_run.values()), key=lambda row: (row.column is None, row.title.lower()))
    for row in rows:
        if row.column is None:
            logger.warning("%s: %s has no rank: %s", row.run, row.title, "; ".join(row.task_marks))
    summaries = [summarize(run, by_run[run.name]) for run in runs]
    title = f"HEAR scores of {', '.join(run.name for run in runs)}"
    document = markdown(title, summaries, rows, everything(runs, rows))
    if html is not None:
        from hear_m2d.evaluation.report.page import render

        atomic_write_text(html, render(title, runs, summaries, rows))
    if md is not None:
        atomic_write_text(md, document)
    if table is not None:
        atomic_write_text(table, csv_text(runs, rows))
    return document
