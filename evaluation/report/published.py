"""Published HEAR figures, kept as data with their source, and the tasks that they belong to.

`hear2021_leaderboard.csv` is the HEAR benchmark's leaderboard, `published_hear.csv` has figures from papers.
M2D has no published HEAR figures: its papers use another protocol (EVAR).
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hear_m2d.evaluation.archives.catalog import all_tasks

LEADERBOARD, PAPERS = "hear2021_leaderboard.csv", "published_hear.csv"
CHALLENGE = "HEAR 2021"
"""The leaderboard's name for entries of the challenge; later entries have a date."""


@dataclass(frozen=True)
class Figure:
    """One published score."""

    model: str
    task: str
    metric: str
    score: float
    """Between 0 and 1."""
    source: str
    date: str = ""
    """`HEAR 2021` for an entry of the challenge, else the day it was added."""


@dataclass(frozen=True)
class Column:
    """One task of the leaderboard with its entries."""

    task: str
    title: str
    metric: str
    figures: tuple[Figure, ...]
    """From the highest score to the lowest."""

    def rank(self, score: float) -> int:
        """Return the rank of a score among the entries; equal scores share the better rank."""
        return 1 + sum(figure.score > score for figure in self.figures)

    def normalized(self, score: float) -> float:
        """Return a score on the scale on which the lowest entry is 0 and the highest 1."""
        low, high = self.figures[-1].score, self.figures[0].score
        return (score - low) / (high - low)

    @property
    def median(self) -> float:
        """Return the median of the entries."""
        return statistics.median(figure.score for figure in self.figures)

    def score_of(self, model: str) -> float | None:
        """Return the score of an entry, if it has one on this task."""
        return next((figure.score for figure in self.figures if figure.model == model), None)


@cache
def leaderboard() -> dict[str, Column]:
    """Return the leaderboard by task, in alphabetical order of the tasks' titles."""
    rows = _rows(LEADERBOARD)
    titles = {row["task"]: (row["leaderboard_column"], row["metric"]) for row in rows}
    columns = {}
    for task, (title, metric) in sorted(titles.items(), key=lambda item: item[1][0].lower()):
        figures = [_figure(row) for row in rows if row["task"] == task]
        ordered = tuple(sorted(figures, key=lambda figure: -figure.score))
        columns[task] = Column(task, title, metric, ordered)
    return columns


@cache
def directories() -> dict[str, tuple[str, ...]]:
    """Return the task folders by the leaderboard's key; Beehive has two, which count as one task."""
    found: dict[str, tuple[str, ...]] = {}
    for task in sorted(all_tasks(), key=lambda task: task.directory):
        found[task.leaderboard_id] = (*found.get(task.leaderboard_id, ()), task.directory)
    return found


@cache
def paper_figures() -> tuple[Figure, ...]:
    """Return the published HEAR figures that are not on the leaderboard."""
    return tuple(_figure(row) for row in _rows(PAPERS))


def leaderboard_source() -> str:
    """Return where the leaderboard was taken from."""
    return next(iter(leaderboard().values())).figures[0].source


def _figure(row: dict[str, str]) -> Figure:
    return Figure(
        row["model"],
        row["task"],
        row["metric"],
        float(row["score"]),
        row["source"],
        row.get("submission_date", ""),
    )


def _rows(name: str) -> list[dict[str, str]]:
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
