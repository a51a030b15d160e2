"""Decoding in worker processes while the model runs: clips in, waveforms out, in the order asked for.

A worker that dies takes nothing with it: its clip is tried once more with no other at work, then reported.
Waveforms come through pipes, in pieces: unlike shared memory these are never too small and leave nothing
behind when a process is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from hear_m2d.audio import AudioError, Sound, read_sound
from hear_m2d.embed.inputs import Clip
from hear_m2d.utils.device import processors
from hear_m2d.utils.errors import WorkFailedError

# Decoded audio that waits for the model, at most, beside one clip per worker: two hours at 16 kHz.
BUDGET_BYTES = 512 << 20
_PIECE = 1 << 18  # samples per message


@dataclass(frozen=True)
class Failure:
    """A clip that gives no embedding.

    Attributes:
        name: The clip's.
        reason: A word or two for the count.
        detail: The rest of the sentence.
    """

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Decoded:
    """A clip and its sound, or why there is none."""

    clip: Clip
    result: Sound | Failure


def default_workers() -> int:
    """Return one process fewer than there are processors, at least one."""
    return max(processors() - 1, 1)


def decode(clip: Clip, sample_rate: int) -> Decoded:
    """Decode one clip here."""
    result: Sound | Failure
    try:
        if os.path.exists(clip.path) and not os.path.isfile(clip.path):  # noqa: PTH110, PTH113
            raise OSError("not a file")  # a pipe would be waited for
        result = read_sound(clip.path, sample_rate)
    except AudioError as error:
        result = Failure(clip.name, error.reason, error.detail)
    except OSError as error:
        result = Failure(clip.name, "unreadable", error.strerror or str(error))
    except MemoryError:
        result = Failure(clip.name, "too large", "its samples do not fit into memory")
    return Decoded(clip, result)


def read_clips(
    clips: Sequence[Clip], sample_rate: int, *, workers: int, budget_bytes: int = BUDGET_BYTES
) -> Generator[Decoded]:
    """Decode clips, ahead of the caller, and yield them in their order.

    Args:
        clips: What to decode.
        sample_rate: The rate wanted, in hertz.
        workers: Processes; 0 decodes in this one, when the next clip is asked for.
        budget_bytes: No new clip is begun while decoded ones of this size together wait for the caller.

    Yields:
        Each clip once.

    Raises:
        WorkFailedError: No worker process can be started.
    """
    if workers == 0:
        for clip in clips:
            yield decode(clip, sample_rate)
        return
    pool = _Pool(clips, sample_rate, workers=min(workers, len(clips)), budget_bytes=budget_bytes)
    try:
        yield from pool
    finally:
        pool.close()


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, sample_rate: int) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, sample_rate), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the pipe
        self.started = False
        self.task: int | None = None

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


class _Pool:
    """The workers, and the thread that feeds them; iterating yields the results in order."""

    def __init__(self, clips: Sequence[Clip], sample_rate: int, *, workers: int, budget_bytes: int) -> None:
        self.clips = clips
        self.sample_rate = sample_rate
        self.budget_bytes = budget_bytes
        # Not forked from this process: torch's threads do not survive that.
        methods = multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self.context.set_forkserver_preload(["hear_m2d.audio"])
        self.count = workers
        self.workers: list[_Worker] = []
        self.todo = deque(range(len(clips)))
        self.again: deque[int] = deque()  # clips whose worker died once
        self.died: set[int] = set()
        self.ready: dict[int, Decoded] = {}
        self.waiting_bytes = 0
        self.error: BaseException | None = None
        self.any_started = False  # otherwise it is not the clip that ends them
        self.closed = False
        self.changed = threading.Condition()
        self.wake_here, self.wake_there = multiprocessing.Pipe(duplex=False)
        self.thread = threading.Thread(target=self._serve, name="decode", daemon=True)
        self.thread.start()

    def __iter__(self) -> Iterator[Decoded]:
        for index in range(len(self.clips)):
            with self.changed:
                while index not in self.ready:
                    if self.error is not None:
                        raise self.error
                    self.changed.wait()
                decoded = self.ready.pop(index)
                self.waiting_bytes -= _bytes(decoded)
            self.wake_there.send_bytes(b"")
            yield decoded

    def close(self) -> None:
        """End the thread and the workers."""
        self.closed = True
        self.wake_there.send_bytes(b"")
        self.thread.join()
        for worker in self.workers:
            worker.stop()

    def _serve(self) -> None:
        try:
            self.workers = [_Worker(self.context, self.sample_rate) for _ in range(self.count)]
            while not self.closed:
                self._assign()
                busy = [worker for worker in self.workers if worker.task is not None]
                pipes = {worker.pipe: worker for worker in busy}
                for pipe in wait([*pipes, self.wake_here]):
                    if pipe is self.wake_here:
                        self.wake_here.recv_bytes()
                    else:
                        self._receive(pipes[pipe])
        except BaseException as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _assign(self) -> None:
        """Give idle workers what comes next. A clip that killed one is tried when all others rest."""
        for worker in self.workers:
            if worker.task is not None:
                continue
            if self.again:
                if any(other.task is not None for other in self.workers):
                    return
                self._give(worker, self.again.popleft())
                return
            if any(other.task in self.died for other in self.workers if other.task is not None):
                return
            if self.todo and self.waiting_bytes < self.budget_bytes:
                self._give(worker, self.todo.popleft())

    def _give(self, worker: _Worker, index: int) -> None:
        worker.task = index
        with contextlib.suppress(OSError):  # it is dead: reading from it will say so
            worker.pipe.send(self.clips[index])

    def _receive(self, worker: _Worker) -> None:
        index = worker.task
        assert index is not None
        try:
            if not worker.started:
                worker.pipe.recv()
                worker.started = self.any_started = True
                return
            decoded = _receive_clip(worker.pipe, self.clips[index])
        except (EOFError, OSError):
            worker.process.join()
            worker.pipe.close()
            if not self.any_started:
                raise WorkFailedError(
                    f"a decoding process ended at its start ({_cause(worker.process.exitcode)}). "
                    f"With --workers 0 the command decodes by itself"
                ) from None
            self.workers[self.workers.index(worker)] = _Worker(self.context, self.sample_rate)
            if index not in self.died:
                self.died.add(index)
                self.again.append(index)
                return
            detail = f"the process that decodes it died twice ({_cause(worker.process.exitcode)})"
            decoded = Decoded(self.clips[index], Failure(self.clips[index].name, "crash", detail))
        worker.task = None
        self.died.discard(index)
        with self.changed:
            self.ready[index] = decoded
            self.waiting_bytes += _bytes(decoded)
            self.changed.notify_all()


def _bytes(decoded: Decoded) -> int:
    return decoded.result.samples.nbytes if isinstance(decoded.result, Sound) else 0


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        try:
            return signal.Signals(-exit_code).name
        except ValueError:
            pass
    return f"exit code {exit_code}"


def _work(pipe: Connection, sample_rate: int) -> None:
    """Decode what the pipe asks for until it closes: the life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    try:
        pipe.send(None)
        while True:
            result = decode(pipe.recv(), sample_rate).result
            if isinstance(result, Failure):
                pipe.send(result)
                continue
            pipe.send((len(result.samples), result.file_rate, result.channels))
            for start in range(0, len(result.samples), _PIECE):
                pipe.send_bytes(result.samples[start : start + _PIECE].data)
    except (EOFError, OSError):
        return  # the process that started us has ended


def _receive_clip(pipe: Connection, clip: Clip) -> Decoded:
    head = pipe.recv()
    if isinstance(head, Failure):
        return Decoded(clip, head)
    count, file_rate, channels = head
    samples = np.empty(count, np.float32)
    for start in range(0, count, _PIECE):
        pipe.recv_bytes_into(samples[start : start + _PIECE])
    return Decoded(clip, Sound(samples, file_rate, channels))
