"""Progress reads as a bar on a terminal, and as lines in a log."""

import io

import pytest

from hear_m2d.utils import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, every_s: float) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "LOG_EVERY_S", every_s)
    with progress.ProgressBar(total=500, unit="step", desc="work") as bar:
        for step in range(500):
            bar.update()
            bar.note(f"loss={step}")
    return stream.getvalue()


def test_a_log_gets_whole_lines_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    text = work(io.StringIO(), monkeypatch, every_s=3600)
    assert "\r" not in text
    first, last = text.splitlines()
    assert first.startswith("work:   0%| 0/500")
    assert last.startswith("work: 100%| 500/500")
    assert last.endswith("loss=499]")


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = work(io.StringIO(), monkeypatch, every_s=1e-9).splitlines()
    assert len(lines) > 2
    assert len(set(lines)) == len(lines)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = work(Terminal(), monkeypatch, every_s=3600)
    assert "\r" in text
    assert text.count("\n") == 1


def test_a_bar_that_is_disabled_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.ProgressBar(total=5, disable=True) as bar:
        bar.update()
        bar.note("nothing")
    assert stream.getvalue() == ""
