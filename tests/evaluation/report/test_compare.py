"""Ranks, means, and which scores are not ranked."""

import pytest

from hear_m2d.evaluation.report.compare import compare, entry_means, summarize
from hear_m2d.evaluation.report.published import leaderboard
from hear_m2d.evaluation.report.runs import read_runs

ESC50, CREMA_D = "esc50-v2.0.0-full", "tfds_crema_d-1.0.0-full"
BEEHIVE = ("beehive_states_fold0-v2-full", "beehive_states_fold1-v2-full")


def rows_of(write_run, *tasks, **settings):
    (run,) = read_runs([str(write_run("mine", *tasks, **settings))])
    return run, compare(run)


def test_a_task_of_hear_is_ranked_among_the_leaderboard(write_run):
    _, (row,) = rows_of(write_run, (ESC50, 0.9475))
    assert row.title == "ESC-50"
    assert row.rank == 1 + sum(figure.score > 0.9475 for figure in leaderboard()["esc50"].figures)
    assert row.marks == ()


def test_the_two_beehive_folders_make_one_ranked_task(write_run):
    _, (row,) = rows_of(write_run, (BEEHIVE[0], 0.6, "aucroc"), (BEEHIVE[1], 0.7, "aucroc"))
    assert row.title == "Beehive"
    assert row.score == pytest.approx(0.65)
    assert row.folds == (0.6, 0.7)
    assert row.rank is not None


def test_one_beehive_folder_alone_is_not_ranked(write_run):
    _, (row,) = rows_of(write_run, (BEEHIVE[1], 0.7, "aucroc"))
    assert (row.score, row.rank) == (0.7, None)
    assert row.marks == (f"without {BEEHIVE[0]}",)


@pytest.mark.parametrize(
    ("folder", "mark"),
    [
        ("esc10-v1-full", "not a HEAR 2021 task"),
        ("esc50-v2.0.0-small", "not a HEAR 2021 task (HEAR has esc50-v2.0.0-full)"),
        ("ecs50-v2.0.0-full", "not a HEAR 2021 task (HEAR has esc50-v2.0.0-full)"),
    ],
)
def test_a_task_outside_hear_is_shown_without_a_rank(write_run, folder, mark):
    _, (row,) = rows_of(write_run, (folder, 0.7))
    assert (row.score, row.rank, row.normalized) == (0.7, None, None)
    assert row.marks == (mark,)


def test_an_altered_task_is_marked_and_not_ranked(write_run):
    entry = write_run.task(ESC50, 0.7) | {"altered": "100 of 2000 clips"}
    _, (row,) = rows_of(write_run, entry)
    assert row.rank is None
    assert row.marks == ("altered task: 100 of 2000 clips",)


def test_another_metric_is_not_ranked(write_run):
    _, (row,) = rows_of(write_run, (ESC50, 0.7, "mAP"))
    assert row.rank is None
    assert row.marks == ("mAP is not the leaderboard's top1_acc",)


def test_a_failed_task_says_why(write_run):
    _, (row,) = rows_of(write_run, (ESC50, None))
    assert (row.score, row.rank) == (None, None)
    assert row.marks == ("failed: RuntimeError: it broke",)


def test_an_infinite_further_metric_is_not_a_mark(write_run):
    entry = write_run.task(ESC50, 0.7) | {"error": "d_prime of fold00 is infinite"}
    _, (row,) = rows_of(write_run, entry)
    assert row.marks == ()
    assert row.rank is not None


def test_a_run_on_another_grid_is_marked_on_every_task(write_run):
    run, rows = rows_of(write_run, (ESC50, 0.7), (CREMA_D, 0.5), grid="fast")
    assert all(row.marks == ("grid 'fast'",) for row in rows)
    assert summarize(run, rows).marks == ("grid 'fast'",)


def test_the_summary_is_over_the_ranked_tasks_only(write_run):
    run, rows = rows_of(write_run, (ESC50, 0.7), (CREMA_D, 0.6), ("esc10-v1-full", 0.99))
    summary = summarize(run, rows)
    ranked = [row for row in rows if row.rank is not None]
    assert summary.tasks == len(ranked) == 2
    assert summary.mean_rank == sum(row.rank for row in ranked) / 2
    assert summary.mean_normalized == pytest.approx(sum(row.normalized for row in ranked) / 2)
    assert summary.entries == 33  # one entry of the leaderboard has no CREMA-D
    others = entry_means([row.column for row in ranked])
    assert summary.place == 1 + sum(other > summary.mean_normalized for other in others.values())


def test_a_run_without_any_ranked_task_has_no_place(write_run):
    summary = summarize(*rows_of(write_run, ("esc10-v1-full", 0.99)))
    assert (summary.tasks, summary.mean_rank, summary.place) == (0, None, None)
