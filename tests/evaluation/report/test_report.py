"""The written report: page, Markdown and CSV hold the same values, and published ones keep their source."""

import csv
import io
import logging
import re

import pytest

from hear_m2d.evaluation.report.report import write_report
from hear_m2d.utils.errors import InputError

ESC50, CREMA_D = "esc50-v2.0.0-full", "tfds_crema_d-1.0.0-full"


@pytest.fixture
def runs(write_run):
    good = write_run(
        "good", (ESC50, 0.81234, "top1_acc", (0.8, 0.82468)), (CREMA_D, 0.7), ("esc10-v1-full", 0.9)
    )
    fast = write_run("<b>fast</b>", (ESC50, 0.5), (CREMA_D, None), grid="fast", points=4)
    return [str(good), str(fast)]


def test_page_markdown_and_csv_are_written(runs, tmp_path):
    paths = [tmp_path / name for name in ("page.html", "report.md", "report.csv")]
    document = write_report(runs, html=paths[0], md=paths[1], table=paths[2])
    assert paths[1].read_text() == document
    page, rows = paths[0].read_text(), list(csv.DictReader(io.StringIO(paths[2].read_text())))
    for text in (document, page):
        assert "81.2 ± 1.7" in text
        assert "CP-JKU PaSST base" in text
        assert "MSM-MAE (best variant)" in text
        assert "2204.12260" in text
        assert "M2D has no published HEAR figures" in text
    esc50 = next(row for row in rows if row["task"] == "ESC-50" and row["run"] == "good")
    assert float(esc50["score"]) == 0.81234
    assert (esc50["grid"], esc50["folds"], esc50["entries"]) == ("default", "2", "34")
    assert "HEAD 3af3234" in esc50["published_source"]
    assert len(rows) == 5


def test_a_run_on_another_grid_is_marked_in_every_table(runs):
    document = write_report(runs)
    lines = [line for line in document.splitlines() if line.startswith("|") and "fast" in line]
    assert len(lines) == 4  # overview, two tasks, beside the published figures
    assert all("</b> †" in line for line in lines)
    assert not any("†" in line for line in document.splitlines() if line.startswith("|") and "good" in line)


def test_published_and_measured_scores_are_in_tables_of_their_own(runs):
    measured, published = write_report(runs).split("\nPublished:\n")
    assert "good" in measured
    assert "OpenL3" not in measured.split("Measured here:")[1]
    assert "good" not in published.split("Sources of")[0]


def test_the_page_loads_nothing_and_names_cannot_inject_markup(runs, tmp_path):
    write_report(runs, html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # without Plotly itself
    assert not re.search(r"(src|href)=[\"'](?!data:)", own)
    assert "<b>fast" not in own
    assert page.count("<script>") == 2


def test_no_task_of_hear_still_makes_a_report(write_run, tmp_path):
    write_report([str(write_run("mine", ("esc10-v1-full", 0.9)))], html=tmp_path / "page.html")
    assert "esc10-v1-full" in (tmp_path / "page.html").read_text()


def test_failed_tasks_only_make_a_page_without_a_chart(write_run, tmp_path):
    write_report([str(write_run("mine", (ESC50, None)))], html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "failed: RuntimeError: it broke" in page
    assert "Plotly" not in page


def test_what_has_no_rank_is_one_line_of_warning(runs, caplog):
    with caplog.at_level(logging.WARNING):
        write_report(runs)
    assert "good: esc10-v1-full has no rank: not a HEAR 2021 task" in caplog.messages
    assert "<b>fast</b>: CREMA-D has no rank: failed: RuntimeError: it broke" in caplog.messages


def test_a_run_without_tasks_is_refused(write_run):
    with pytest.raises(InputError, match="holds no task yet"):
        write_report([str(write_run("mine"))])
