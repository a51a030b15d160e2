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

LEADERBOARD, PAPERS = "hear2021_leaderboard.csv", "published_hear.csv"
CHALLENGE = "HEAR 2021"
"""What the leaderboard calls the entries of the challenge; later ones have a date."""

DIRECTORIES = {
    "dcase2016_task2": ("dcase2016_task2-hear2021-full",),
    "nsynth_pitch_5h": ("nsynth_pitch-v2.2.3-5h",),
    "nsynth_pitch_50h": ("nsynth_pitch-v2.2.3-50h",),
    "speech_commands_5h": ("speech_commands-v0.0.2-5h",),
    "speech_commands_full": ("speech_commands-v0.0.2-full",),
    "beehive_states": ("beehive_states_fold0-v2-full", "beehive_states_fold1-v2-full"),
    "beijing_opera": ("beijing_opera-v1.0-hear2021-full",),
    "tfds_crema_d": ("tfds_crema_d-1.0.0-full",),
    "esc50": ("esc50-v2.0.0-full",),
    "fsd50k": ("fsd50k-v1.0-full",),
    "gunshot_triangulation": ("gunshot_triangulation-v1.0-full",),
    "tfds_gtzan": ("tfds_gtzan-1.0.0-full",),
    "tfds_gtzan_music_speech": ("tfds_gtzan_music_speech-1.0.0-full",),
    "libricount": ("libricount-v1.0.0-hear2021-full",),
    "maestro_5h": ("maestro-v3.0.0-5h",),
    "mridangam_stroke": ("mridangam_stroke-v1.5-full",),
    "mridangam_tonic": ("mridangam_tonic-v1.5-full",),
    "vocal_imitation": ("vocal_imitation-v1.1.3-full",),
    "vox_lingua_top10": ("vox_lingua_top10-hear2021-full",),
}
"""The leaderboard's task: the folders that hold it. The two Beehive folders count as one task."""
TASK_OF = {folder: task for task, folders in DIRECTORIES.items() for folder in folders}


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
        """Return the place that a score takes among the entries; a tie shares the better place."""
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
