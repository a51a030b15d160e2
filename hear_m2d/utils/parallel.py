"""Work in threads or processes while the caller uses the results.

* :func:`map_threads`: results in order, computed ahead. For C libraries that release the interpreter lock.
* :func:`map_processes`: results as they come. For work that holds the lock, or that may crash. Items must be
  independent of one another, and the function and its items must be picklable.

Both are generators: close them (``contextlib.closing``) to stop early.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from hear_m2d.utils.errors import WorkFailedError

T = TypeVar("T")
R = TypeVar("R")

_QUEUED = 1024  # items handed to the threads at a time


class ProcessDiedError(WorkFailedError):
    """A worker process died twice while it worked on an item."""


def map_threads(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    size: Callable[[R], int] = lambda _: 0,
    budget: int = 1,
) -> Generator[R]:
    """Yield ``function(item)`` for each item, in order, computed ahead of the caller.

    Args:
        function: What to compute. An exception reaches the caller in its place in the order.
        items: Its arguments.
        workers: Number of threads. 0: computed in this thread when asked for.
        size: Returns how much a result counts against ``budget``, for example its bytes.
        budget: No item is started while finished results of this total size wait for the caller.
    """
    if workers == 0:
        yield from map(function, items)
        return
    changed = threading.Condition()
    waiting = wanted = 0  # total size of finished results; index of the item that the caller needs next
    stopped = False

    def work(index: int, item: T) -> tuple[R, int] | None:
        nonlocal waiting
        with changed:  # the item that the caller waits for is always started
            changed.wait_for(lambda: waiting < budget or index == wanted or stopped)
        if stopped:
            return None
        result = function(item)
        held = size(result)
        with changed:
            waiting += held
        return result, held

    numbered = enumerate(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="work") as pool:
        try:
            queue = deque(pool.submit(work, *pair) for pair in islice(numbered, _QUEUED))
            while queue:
                if (done := queue.popleft().result()) is None:
                    return
                with changed:
                    waiting -= done[1]
                    wanted += 1
                    changed.notify_all()
                queue.extend(pool.submit(work, *pair) for pair in islice(numbered, 1))
                yield done[0]
        finally:
            with changed:
                stopped = True
                changed.notify_all()
            pool.shutdown(wait=False, cancel_futures=True)


def map_processes(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, preload: Sequence[str] = ()
) -> Generator[tuple[T, R | ProcessDiedError]]:
    """Yield ``(item, function(item))`` for each item, as the results come.

    If a worker process dies, the items that were in work are retried one at a time, each in a new process.
    An item whose process dies again yields a :class:`ProcessDiedError` in place of its result, and the rest
    goes on. Workers end when this process ends, even if it is killed.

    Args:
        function: A function of a module. An exception reaches the caller and ends the work.
        items: Its arguments.
        workers: Number of processes, at least 1.
        preload: Modules to import once for all workers, where the system can (``forkserver``).
    """
    rest = iter(items)
    while True:
        lost = yield from _map_until_death(function, rest, workers, preload)
        if not lost:
            return
        for item in lost:
            if (yield from _map_until_death(function, iter([item]), 1, preload)):
                yield item, ProcessDiedError("its worker process died twice, perhaps for lack of memory")


def _map_until_death(
    function: Callable[[T], R], items: Iterable[T], workers: int, preload: Sequence[str]
) -> Generator[tuple[T, R], None, list[T]]:
    """Yield results until a worker dies; return the items that were in work then."""
    running: dict[Future[R], T] = {}
    submitted: list[T] = []
    pool = ProcessPoolExecutor(workers, mp_context=_context(preload), initializer=_start_worker)
    try:
        while True:
            # Only few are queued: all items in work when a process dies are repeated one by one.
            for item in islice(items, workers + 1 - len(running)):
                submitted = [item]
                running[pool.submit(function, item)] = item
                submitted = []
            if not running:
                return []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future), result
    except BrokenProcessPool:
        return list(running.values()) + submitted
    except BaseException:  # the caller stops early: do not wait for items in work
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _context(preload: Sequence[str]) -> Any:
    """Return a way to start processes that does not fork this one: torch's threads do not survive a fork."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__, *preload])
    return context


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent process handles, and end when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
