"""One run in several processes: ranks, work of the main process alone, and the end of all processes.

The environment of the launcher (torchrun or accelerate launch) says how many processes there are; without a
launcher there is one. All processes have the same weights, so only the main process writes.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hear_m2d.utils.device import pick_device
from hear_m2d.utils.errors import InputError, WorkFailedError

logger = logging.getLogger(__name__)

T = TypeVar("T")
FAILED = "hear_m2d_failed"  # a failing process writes to the store before the calls of the others fail
LONG = timedelta(days=30)  # the others wait while the main process prepares the data
STOPPED = 128 + signal.SIGTERM  # the exit code of a run that SIGTERM stopped


class OtherProcessFailedError(RuntimeError):
    """Another process of this run failed and reports the error."""


class StoppedError(RuntimeError):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them."""

    rank: int = 0  # 0 is the main one
    count: int = 1
    local: int = 0  # the rank on its machine
    store: Any = None  # of keys and values that all of them can read and write
    group: Any = None  # for collective calls on the CPU, with a timeout of days

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, logs and locks the folder."""
        return self.rank == 0

    def log_once(self, message: str, *values: object) -> None:
        """Log a line, once for the run."""
        logger.log(logging.INFO if self.is_main else logging.DEBUG, message, *values)

    def share(self, batch: int) -> slice:
        """Return this process's part of a batch; an InputError if the batch cannot be divided evenly."""
        if batch % self.count:
            raise InputError(
                f"batch_size = {batch} clips cannot be divided evenly among {self.count} processes: "
                f"give a multiple of {self.count}"
            )
        part = batch // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def run_everywhere(self, work: Callable[[], T]) -> T:
        """Call a function in every process; if it fails in one process, all raise an error.

        The other processes raise an OtherProcessFailedError.
        """
        if self.count == 1:
            return work()
        error: Exception | None = None
        try:
            done = work()
        except Exception as caught:
            error = caught
        failed: list[bool] = [False] * self.count
        dist.all_gather_object(failed, error is not None, group=self.group)
        if any(failed):
            if error is not None and failed.index(True) == self.rank:
                raise error
            raise OtherProcessFailedError(f"process {failed.index(True)} failed") from error
        return done

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Call a function in the main process only, and return its result in every process."""
        if self.count == 1:
            return work()
        results: list[Any] = [self.run_everywhere(lambda: work() if self.is_main else None)]
        dist.broadcast_object_list(results, src=0, group=self.group)
        result: T = results[0]
        return result

    def broadcast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the main process's tensors in every process, one by one; they lie on the CPU."""
        if self.count == 1:
            return tensors
        kinds = self.run_on_main(lambda: {name: (t.shape, t.dtype) for name, t in tensors.items()})
        received = {}
        for name, (shape, dtype) in kinds.items():
            received[name] = tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(received[name], src=0, group=self.group)
        return received

    def mean(self, values: list[Tensor]) -> list[float]:
        """Return the means of scalars over all processes; this waits for the device."""
        stacked = torch.stack([value.detach().double() for value in values]).cpu()
        if self.count > 1:
            dist.all_reduce(stacked, group=self.group)
        means: list[float] = (stacked / self.count).tolist()
        return means

    @contextmanager
    def abort_all_on_error(self) -> Iterator[None]:
        """End every process when one fails, with a single error message."""
        try:
            yield
        except (OtherProcessFailedError, StoppedError):
            raise
        except Exception as error:
            if self.count == 1:
                raise
            if isinstance(error, RuntimeError) and not isinstance(error, WorkFailedError):
                self._require_own_error(error)
            if self._first_to_fail() != self.rank:
                raise OtherProcessFailedError("another process of the run failed") from error
            raise

    def _first_to_fail(self) -> int:
        """Return the number of the process that failed first, which reports the error."""
        try:
            return int(self.store.compare_set(FAILED, "", str(self.rank)))
        except dist.DistError:  # the process with the store has ended
            return self.rank

    def _require_own_error(self, error: RuntimeError) -> None:
        """Raise another error if this one only follows from the end of another process."""
        try:
            self.store.wait([FAILED], timedelta(seconds=3))
            raise OtherProcessFailedError("another process of the run failed") from error
        except (dist.DistStoreError, dist.DistNetworkError):
            pass  # no process reported an error, or the process with the store has ended
        # gloo raises a plain RuntimeError.
        if isinstance(error, dist.DistError) or re.search("gloo|nccl|connection", str(error), re.IGNORECASE):
            if not self.is_main:
                raise OtherProcessFailedError("another process of the run ended") from error
            first_line = str(error).strip().partition("\n")[0]
            raise WorkFailedError(
                f"another process of the run ended without an error message (out of memory, or killed?). The "
                f"same command continues from the last saved state. torch says: {first_line}"
            ) from error


def init_distributed() -> Processes:
    """Return the processes that torchrun or accelerate launch started; they meet on the first call.

    Raises an InputError if the launcher's environment is incomplete.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Processes()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise InputError(
                f"{name} is {value!r}, but WORLD_SIZE is set: start the command with torchrun or accelerate "
                f"launch, or unset WORLD_SIZE"
            )
    if not _JOINED:
        store, rank, count = next(iter(rendezvous("env://")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("run", store), rank=rank, world_size=count)
        # Not accelerate's gather_object: its group is that of the gradients, which times out after minutes.
        group = dist.new_group(backend="gloo", timeout=LONG)
        local = int(os.environ["LOCAL_RANK"])
        _JOINED.append(Processes(rank=rank, count=count, local=local, store=store, group=group))
    return _JOINED[0]


def end_distributed() -> None:
    """Leave the group of processes at the end of a successful run."""
    if _JOINED:
        dist.destroy_process_group()
        _JOINED.clear()


_JOINED: list[Processes] = []  # torch.distributed's own state is global in the process, and so is this


def process_device(processes: Processes, name: str) -> torch.device:
    """Return this process's device; if there are several processes, each has its own GPU.

    Raises an InputError if there is no such device, or fewer GPUs than processes.
    """
    device = pick_device(name)
    if processes.count == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(f"{processes.count} processes cannot share {name}: give --device cuda")
    gpus = torch.cuda.device_count()
    if processes.local >= gpus:
        raise InputError(
            f"process {processes.local} of this machine has no GPU: torch sees {gpus}. Start as "
            f"many processes as there are GPUs, with torchrun --nproc-per-node {gpus}"
        )
    return torch.device("cuda", processes.local)


class _InterruptedWork(BaseException):  # raised by the signal's handler, caught by `run_interruptible`
    """SIGTERM came during work that can be abandoned."""


class StopRequest:
    """SIGTERM, noticed between two steps, in all processes at the same step.

    Each process shares its flag in the background during a step, and reads the common result before the
    next step. No process waits, and none starts a step that another one skips.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked = False
        self._interrupts = False
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._interrupts:
            raise _InterruptedWork

    def run_interruptible(self, work: Callable[[], None]) -> None:
        """Do work that SIGTERM interrupts at once, because a continued run repeats it."""
        self._interrupts = True
        try:
            if not self._asked:
                work()
        except _InterruptedWork:
            logger.info("SIGTERM: the probe is interrupted; the continued run repeats it")
        finally:
            self._interrupts = False

    @contextmanager
    def heard(self) -> Iterator[StopRequest]:
        """Handle the signal inside the block; in the main thread only, as Python requires."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._handle) if in_main_thread else None
        try:
            yield self
        finally:
            if in_main_thread:
                signal.signal(signal.SIGTERM, before)

    def asked(self) -> bool:
        """Return whether to stop before the next step; called once a step in every process."""
        if self._processes.count == 1:
            return self._asked
        if self._work is not None:
            self._work.wait()
            if int(self._flag):
                return True
        self._flag = torch.tensor([int(self._asked)], dtype=torch.int32)
        self._work = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self._processes.group, async_op=True
        )
        return False
