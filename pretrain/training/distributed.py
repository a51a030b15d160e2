"""One run in several processes: who is who, who does what alone, and how all of them end together.

The launcher's environment decides (torchrun, accelerate launch, srun); without one there is a single process.
Weights are the same everywhere, so only the main process writes.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
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
FAILED = "hear_m2d_failed"  # a process that fails says so in the store, before the others notice its silence
LONG = timedelta(days=30)  # the others may wait while the main process prepares the data
STOPPED = 128 + signal.SIGTERM  # the exit code of a run that SIGTERM stopped


class OtherProcessFailedError(RuntimeError):
    """Another process of this run failed, and has said why: nothing more is to be said here."""


class StoppedError(RuntimeError):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Which one this is; 0 is the main one.
        count: How many there are.
        local: Which one this is on its machine.
        store: What all of them can read and write, beside the collective calls.
        group: Collective calls on the CPU, with a patience of days.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    store: Any = None
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, logs and holds the folder."""
        return self.rank == 0

    def say(self, message: str, *values: object) -> None:
        """Log a line, once for the run."""
        logger.log(logging.INFO if self.is_main else logging.DEBUG, message, *values)

    def share(self, batch: int) -> slice:
        """Return which clips of a batch are this process's.

        Raises:
            ValueError: The batch cannot be divided evenly.
        """
        if batch % self.count:
            raise InputError(
                f"batch_size = {batch} clips cannot be shared evenly by {self.count} processes: "
                f"give a multiple of {self.count}"
            )
        part = batch // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def together(self, work: Callable[[], T]) -> T:
        """Do something in every process; an error in one of them is an error in all.

        Raises:
            OtherProcessFailedError: Another process failed; that one raises its own error.
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

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process alone, and return its result everywhere."""
        if self.count == 1:
            return work()
        done = self.together(lambda: work() if self.is_main else None)
        results: list[Any] = [done]
        dist.broadcast_object_list(results, src=0, group=self.group)
        found: T = results[0]
        return found

    def mean(self, values: list[Tensor]) -> list[float]:
        """Return the means of scalars over all processes; the device is waited for here."""
        stacked = torch.stack([value.detach().double() for value in values]).cpu()
        if self.count > 1:
            dist.all_reduce(stacked, group=self.group)
        means: list[float] = (stacked / self.count).tolist()
        return means

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """End every process when one fails, with one sentence between them."""
        if self.count == 1:
            yield
            return
        try:
            yield
        except (OtherProcessFailedError, StoppedError):
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and not isinstance(error, WorkFailedError):
                self._ask_the_others(error)
            if self._first_to_fail() != self.rank:
                raise OtherProcessFailedError("another process of the run failed") from error
            raise

    def _first_to_fail(self) -> int:
        """Return which process failed first: the one that tells why."""
        try:
            return int(self.store.compare_set(FAILED, "", str(self.rank)))
        except dist.DistError:  # the process that kept the store is gone
            return self.rank

    def _ask_the_others(self, error: RuntimeError) -> None:
        """Tell an error of this process from the silence of another one."""
        try:
            self.store.wait([FAILED], timedelta(seconds=3))
            raise OtherProcessFailedError("another process of the run failed") from error
        except (dist.DistStoreError, dist.DistNetworkError):
            pass  # nobody said anything, or the process that kept the store is gone
        if isinstance(error, dist.DistError) or re.search("gloo|nccl|connection", str(error), re.IGNORECASE):
            if not self.is_main:
                raise OtherProcessFailedError("another process of the run ended") from error
            raise WorkFailedError(
                "another process of the run ended without a word (out of memory, or killed?): the same "
                "command continues from the last saved state"
            ) from error


def join() -> Processes:
    """Return the processes that the launcher started; they meet on the first call.

    Raises:
        ValueError: The launcher's environment is incomplete, or not made of numbers.
    """
    environment = os.environ
    if "WORLD_SIZE" not in environment and _number(environment, "SLURM_STEP_NUM_TASKS", 1, least=1) > 1:
        environment.update(_slurm(dict(environment)))
    count = _number(environment, "WORLD_SIZE", 1, least=1)
    if count == 1:
        return Processes()
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise InputError(
            f"WORLD_SIZE is {count} and {missing[0]} is not set: start the command with torchrun, "
            f"accelerate launch or srun"
        )
    local = _number(environment, "LOCAL_RANK", _number(environment, "RANK"))
    environment.setdefault("LOCAL_RANK", str(local))
    _number(environment, "MASTER_PORT")  # torch reads it, and would not name it
    if not _JOINED:
        store, rank, _ = next(iter(rendezvous("env://")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("run", store), rank=rank, world_size=count)
        group = dist.new_group(backend="gloo", timeout=LONG)
        _JOINED.append(Processes(rank=rank, count=count, local=local, store=store, group=group))
    return _JOINED[0]


def leave() -> None:
    """Part from the other processes, at the end of a run that went well."""
    if _JOINED:
        dist.destroy_process_group()
        _JOINED.clear()


_JOINED: list[Processes] = []  # torch.distributed's own state is the process's, and so is this


def process_device(processes: Processes, name: str) -> torch.device:
    """Return this process's device: where there are several, each has a GPU of its own.

    Raises:
        ValueError: No such device, one device for several processes, or fewer GPUs than processes.
    """
    device = pick_device(name)
    if processes.count == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(f"{processes.count} processes cannot share {name}: give --device cuda")
    here = _number(os.environ, "LOCAL_WORLD_SIZE", processes.local + 1, least=1)
    gpus = torch.cuda.device_count()
    if gpus not in (1, here) and gpus <= processes.local:
        raise InputError(f"{here} processes on a machine with {gpus} GPUs: start one for each GPU")
    return torch.device("cuda", processes.local % gpus)  # srun may show each process its own GPU only


class StopRequest:
    """SIGTERM, noticed between two steps, in all processes at the same step.

    Each process tells its own flag in the background while a step is computed, and reads what came of it
    before the next: no waiting, and no process runs into a step that another has left out.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked = False
        self._told = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @contextmanager
    def heard(self) -> Iterator[StopRequest]:
        """Catch the signal meanwhile; outside the main thread, where Python allows no handler, do not."""
        try:
            before = signal.signal(signal.SIGTERM, self._handle)
        except ValueError:
            yield self
            return
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def asked(self) -> bool:
        """Return whether to stop before the next step; called once a step in every process."""
        if self._processes.count == 1:
            return self._asked
        if self._work is not None:
            self._work.wait()
            if int(self._told):
                return True
        self._told = torch.tensor([int(self._asked)], dtype=torch.int32)
        self._work = dist.all_reduce(
            self._told, op=dist.ReduceOp.MAX, group=self._processes.group, async_op=True
        )
        return False


def _number(environment: Mapping[str, str], name: str, default: int = 0, *, least: int = 0) -> int:
    """Return a variable of the launcher's environment.

    Raises:
        ValueError: It is no whole number, or a smaller one.
    """
    value = environment.get(name, str(default))
    if not value.isascii() or not value.isdecimal() or int(value) < least:
        raise InputError(
            f"{name} is {value!r}; it is a whole number, at least {least}, which torchrun, accelerate launch "
            f"or srun sets: start the command with one of them, or unset it"
        )
    return int(value)


def _slurm(environment: dict[str, str]) -> dict[str, str]:
    """Return torch's variables for a process that srun started without torchrun."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    # "node[03-07,12],other" → "node03"
    first = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    if not first and "MASTER_ADDR" not in environment:
        raise InputError("SLURM does not say on which node the first process runs: set MASTER_ADDR")
    address = (first[1] + (first[2] or "")) if first else ""
    job = _number(environment, "SLURM_JOB_ID")
    return {
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", address),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + job % 20000)),
    }
