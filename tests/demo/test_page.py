import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import page
import pytest
import table
from matplotlib.image import imsave

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Balanced(HTMLParser):
    """Refuses tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def out(tmp_path):
    """What the commands leave behind, as little of it as a page needs."""
    for run, extra in (("m2d", {"target_std": 0.7, "target_cosine": 0.4}), ("msm_mae", {})):
        (tmp_path / run).mkdir()
        lines = [json.dumps({"step": step, "loss": 1 / (1 + step), **extra}) for step in range(0, 50, 10)]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 50, "lo')
    for number, model in enumerate(table.MODELS):
        scores = {"mAP": 0.5 + number / 10}
        task = {"task": "birds-v1-small", "metric": "mAP", "status": "ok", "error": None, "scores": scores}
        found = {
            "harness": {
                "heareval": "2021.1.3",
                "hearvalidator": "2021.0.6",
                "grid": "default",
                "grid_points": 1,
            },
            "environment": {"python": "3.11", "torch": "2.11", "device": "cpu", "threads": 2},
            "tasks": [task],
        }
        (tmp_path / "eval" / model).mkdir(parents=True)
        (tmp_path / "eval" / model / "results.json").write_text(json.dumps(found))
    (tmp_path / "pictures" / "owl").mkdir(parents=True)
    imsave(tmp_path / "pictures" / "owl" / "reconstruction.png", np.zeros((4, 4)))
    return tmp_path


@pytest.fixture
def facts(out):
    return {
        "corpus": "8 generated clips",
        "minutes": "for 1.25 minutes",
        "hardware": "2 cores of something <fast>",
        "commands": [("hear-m2d prepare corpus data", 61.0)],
        "failed": [],
        "validator": "Checking\nLooks good!",
        "tasks_dir": out / "tasks",
        "about_tasks": {"birds-v1-small": "Which bird?"},
        "total_s": 300.0,
    }


def html(out, facts):
    return page.write_page(out, facts=facts).read_text()


def test_page_shows_scores_curves_pictures_and_commands(out, facts):
    text = html(out, facts)
    assert all(score in text for score in ("0.500", "0.600", "0.700", "0.800"))
    assert re.findall(r'class="score best">([\d.]+)', text) == ["0.800"]
    assert text.count("<svg") == 3  # two losses, and what tells of M2D's target
    assert "data:image/png;base64," in text
    assert "hear-m2d prepare corpus data" in text
    assert "1:01" in text
    assert "Looks good!" in text


def test_page_fetches_nothing(out, facts):
    text = html(out, facts)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert not re.findall(r"@import|url\((?!#)|<script|<link", text)


def test_page_is_well_formed_and_text_is_escaped(out, facts):
    text = html(out, facts)
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert "&lt;fast&gt;" in text
    assert page.INK not in text, "charts take the page's own text color"


def test_page_names_a_task_without_a_score(out, facts):
    path = out / "eval" / "m2d" / "results.json"
    found = json.loads(path.read_text())
    found["tasks"][0] |= {"status": "failed", "error": "mAP of test is NaN", "scores": {"mAP": None}}
    path.write_text(json.dumps(found))
    assert "M2D, a minute, birds-v1-small: mAP of test is NaN" in html(out, facts)


def test_page_marks_a_command_that_failed_in_part(out, facts):
    assert "exit code 1: not every task has a score" not in html(out, facts)
    text = html(out, facts | {"failed": ["hear-m2d prepare corpus data"]})
    assert "exit code 1: not every task has a score" in text


def test_drawing_leaves_matplotlib_as_it_was(out):
    before = dict(mpl.rcParams)
    page.curves(out)
    assert dict(mpl.rcParams) == before
