"""Threads give results in order within a budget; a process that dies costs only its own item."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from hear_m2d.utils.parallel import ProcessDiedError, map_processes, map_threads


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_however_many_threads(workers):
    def uneven(number):
        time.sleep(0.0005 * (number % 3))
        return number

    assert list(map_threads(uneven, range(1100), workers=workers)) == list(range(1100))


def test_no_item_is_started_while_results_of_the_budget_wait():
    started = []

    def work(number):
        started.append(number)
        return number

    results = map_threads(work, range(50), workers=2, size=lambda _: 10, budget=30)
    assert next(results) == 0
    time.sleep(0.3)  # in which threads without a limit would finish
    assert len(started) <= 6
    assert list(results) == list(range(1, 50))


def test_the_item_that_the_caller_waits_for_is_never_held_back():
    """The second finishes first and fills the budget; the first must still be computed."""
    second = threading.Event()

    def work(number):
        if number == 0:
            second.wait(10)
        second.set()
        return number

    assert list(map_threads(work, range(20), workers=2, size=lambda _: 10, budget=10)) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_reaches_the_caller_in_its_place(workers):
    def work(number):
        return 1 // (number - 3)

    results = map_threads(work, range(10), workers=workers)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_that_stops_early_leaves_no_thread_at_work():
    started = []
    with closing(
        map_threads(lambda n: started.append(n) or time.sleep(0.01), range(500), workers=2)
    ) as results:
        next(results)
    count = len(started)
    time.sleep(0.1)
    assert len(started) <= count + 2


KILL = "__import__('os').kill(__import__('os').getpid(), 9)"  # functions of a test module reach no worker


def test_an_item_that_kills_its_process_twice_is_reported_and_the_rest_is_done():
    items = [f"{number} * 2" for number in range(8)]
    results = dict(map_processes(eval, [*items[:3], KILL, *items[3:]], workers=2))
    assert isinstance(results.pop(KILL), ProcessDiedError)
    assert results == {item: 2 * number for number, item in enumerate(items)}


def test_an_item_whose_process_dies_once_is_done_again(tmp_path):
    path = f"__import__('pathlib').Path({str(tmp_path / 'x')!r})"
    item = f"'done' if {path}.exists() else ({path}.touch(), {KILL})"
    assert list(map_processes(eval, [item], workers=1)) == [(item, "done")]


def test_an_error_in_a_process_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_processes(eval, ["1 // 0"], workers=1))


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_command_that_is_stopped(tmp_path, stop):
    path = tmp_path / "pid"
    item = f"open({str(path)!r}, 'w').write(str(__import__('os').getpid())), __import__('time').sleep(60)"
    code = (
        f"from hear_m2d.utils.parallel import map_processes\nlist(map_processes(eval, [{item!r}], workers=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 50
    while not path.exists() or not path.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(stop)
    process.wait(20)
    worker = int(path.read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the command")
