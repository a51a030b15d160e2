"""Runs compared with the leaderboard: ranks, normalized scores, marks for scores that cannot be compared."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hear_m2d.evaluation.report.published import Column, directories, leaderboard
from hear_m2d.evaluation.report.runs import Run, TaskScore


@dataclass(frozen=True)
class Row(TaskScore):
    """One task of one run beside the leaderboard."""

    run: str
    title: str
    """The leaderboard's name of the task, else the name of its folder."""
    column: Column | None
    """The leaderboard's entries, where the score can be ranked among them."""
    run_marks: tuple[str, ...]
    """How the harness's settings differ from those of published scores."""
    task_marks: tuple[str, ...]
    """Differences from the published task, or the reason for a missing score."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Return all marks."""
        return self.task_marks + self.run_marks

    @property
    def rank(self) -> int | None:
        """Return the rank of this score among the leaderboard's entries."""
        return None if self.column is None or self.score is None else self.column.rank(self.score)

    @property
    def normalized(self) -> float | None:
        """Return the score between the lowest (0) and the highest (1) entry of the leaderboard."""
        return None if self.column is None or self.score is None else self.column.normalized(self.score)


@dataclass(frozen=True)
class Summary:
    """One run over the tasks that can be ranked."""

    run: str
    tasks: int
    """How many tasks can be ranked."""
    mean_rank: float | None
    mean_normalized: float | None
    place: int | None
    """Among the leaderboard's entries that have all these tasks, by mean normalized score."""
    entries: int
    """The number of those entries."""
    marks: tuple[str, ...]


def compare(run: Run) -> list[Row]:
    """Return one row for each task of a run; the two Beehive folders make one row."""
    by_folder = {task.folder: task for task in run.tasks}
    names = {folder: name for name, folders in directories().items() for folder in folders}
    rows, done = [], set()
    for task in run.tasks:
        name = names.get(task.folder)
        if name is None:
            rows.append(_row(run, task, None, _unknown(task.folder, names)))
        elif name not in done:
            done.add(name)
            parts = [by_folder[folder] for folder in directories()[name] if folder in by_folder]
            absent = [folder for folder in directories()[name] if folder not in by_folder]
            task = task if len(directories()[name]) == 1 else _merge(parts)
            rows.append(_row(run, task, leaderboard()[name], [f"without {folder}" for folder in absent]))
    return sorted(rows, key=lambda row: (row.column is None, row.title.lower()))


def summarize(run: Run, rows: Sequence[Row]) -> Summary:
    """Return ranks and normalized scores of a run over its ranked tasks, from :func:`compare`."""
    ranked = [row for row in rows if row.column is not None and row.score is not None]
    columns = [row.column for row in ranked if row.column is not None]
    if not columns:
        return Summary(run.name, 0, None, None, None, 0, run.marks)
    mean = statistics.fmean(row.normalized for row in ranked if row.normalized is not None)
    others = entry_means(columns)
    return Summary(
        run=run.name,
        tasks=len(columns),
        mean_rank=statistics.fmean(row.rank for row in ranked if row.rank is not None),
        mean_normalized=mean,
        place=1 + sum(other > mean for other in others.values()),
        entries=len(others),
        marks=run.marks,
    )


def entry_means(columns: Sequence[Column]) -> dict[str, float]:
    """Return the mean normalized score of each entry of the leaderboard that has all these tasks."""
    means = {}
    for model in dict.fromkeys(figure.model for column in columns for figure in column.figures):
        pairs = [(column, column.score_of(model)) for column in columns]
        values = [column.normalized(score) for column, score in pairs if score is not None]
        if len(values) == len(columns):
            means[model] = statistics.fmean(values)
    return means


def _row(run: Run, task: TaskScore, column: Column | None, marks: list[str]) -> Row:
    title = column.title if column is not None else task.folder
    ranked = column if task.score is not None and not marks else None
    if task.altered:
        ranked = None
        marks.append(f"altered task: {task.altered}")
    if task.score is None:  # with a score, the error is about further metrics, such as an infinite d_prime
        marks.append(f"failed: {task.error}")
    if column is not None and task.metric != column.metric:
        marks.append(f"{task.metric} is not the leaderboard's {column.metric}")
        ranked = None
    return Row(
        **vars(task),
        run=run.name,
        title=title,
        column=ranked,
        run_marks=run.marks,
        task_marks=tuple(marks),
    )


def _merge(parts: Sequence[TaskScore]) -> TaskScore:
    """Combine the two Beehive folders into one task with the mean of their scores."""
    scores = [part.score for part in parts if part.score is not None]
    seconds = [part.seconds for part in parts if part.seconds is not None]
    memory = [part.peak_memory_bytes for part in parts if part.peak_memory_bytes is not None]
    complete = len(scores) == len(parts)
    return TaskScore(
        folder=parts[0].folder,
        metric=parts[0].metric,
        score=statistics.fmean(scores) if complete else None,
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
        folds=tuple(scores) if len(scores) > 1 else (),
        error="; ".join(part.error for part in parts if part.error),
        altered="; ".join(part.altered for part in parts if part.altered),
        seconds=sum(seconds) if seconds else None,
        peak_memory_bytes=max(memory, default=None),
    )


def _unknown(folder: str, known: Collection[str]) -> list[str]:
    """Return a note that a folder is not a task of HEAR 2021, and which task it may have been made from."""
    stem = folder.partition("-")[0]
    same = [name for name in known if name.partition("-")[0] == stem]
    near = same or difflib.get_close_matches(folder, known, n=1, cutoff=0.8)
    return [f"not a HEAR 2021 task{f' (HEAR has {near[0]})' if near else ''}"]
