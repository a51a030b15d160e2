"""The published figures: complete, with sources, and ranked as the leaderboard's own order has them."""

import pytest

from hear_m2d.evaluation.report.published import directories, leaderboard, paper_figures


def test_the_leaderboard_has_19_tasks_34_models_and_616_figures():
    columns = leaderboard()
    assert set(columns) == set(directories())
    assert len(columns) == 19
    assert [len(folders) for folders in directories().values()].count(2) == 1  # Beehive
    figures = [figure for column in columns.values() for figure in column.figures]
    assert len(figures) == 616
    assert len({figure.model for figure in figures}) == 34
    assert all(0 <= figure.score <= 1 and "HEAD 3af3234" in figure.source for figure in figures)


def test_msm_mae_has_the_two_figures_of_its_abstract_and_m2d_has_none():
    figures = {(figure.task, figure.score) for figure in paper_figures()}
    assert figures == {("tfds_crema_d", 0.734), ("libricount", 0.858)}
    assert all("2204.12260" in figure.source for figure in paper_figures())
    assert not any(figure.model.startswith("M2D") for figure in paper_figures())


def test_rank_counts_the_better_entries_and_a_tie_shares_the_better_place():
    column = leaderboard()["esc50"]
    best, second = column.figures[:2]
    assert column.rank(1.0) == column.rank(best.score) == 1
    assert column.rank(best.score - 1e-9) == 2
    assert column.rank(second.score) == 2
    assert column.rank(0.0) == 35


def test_normalized_score_is_0_at_the_lowest_entry_and_1_at_the_highest():
    column = leaderboard()["libricount"]
    low, high = column.figures[-1].score, column.figures[0].score
    assert column.normalized(low) == 0
    assert column.normalized(high) == 1
    assert column.normalized((low + high) / 2) == pytest.approx(0.5)
    assert column.normalized(high + (high - low)) == pytest.approx(2)
