"""The batches of a run, as one process sees them: its share of each step's clips and masks, on its device.

Everything is a function of (seed, step): a resumed run, or one with other processes, sees what it would have.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hear_m2d.pretrain.data.crops import Key, StepBatches, collate
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.utils.errors import WorkFailedError

# What the command line tells in one line.
TOLD = WorkFailedError, ConnectionError, OSError, ValueError, TypeError, ImportError
GRACE_S = 30  # that a loader process outlives SIGTERM; torchrun's own


class Shares:
    """A process's share of each step's keys, for ``DataLoader(batch_sampler=…)``.

    Args:
        steps: The keys of whole batches.
        share: Which of a batch's clips are this process's.
    """

    def __init__(self, steps: StepBatches, share: slice) -> None:
        self.steps, self.share = steps, share

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield each step's keys."""
        for keys in self.steps:
            yield keys[self.share]


def batches(
    items: Dataset[dict[str, Tensor]],
    steps: StepBatches,
    *,
    share: slice,
    patches: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    lock: Path | None = None,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield this process's part of each step's batch, on its device.

    On a GPU the copies run beside the computation: from pinned memory, on a stream of their own.

    Args:
        items: Items by (epoch, clip).
        steps: Which steps.
        share: Which of a batch's clips are this process's.
        patches: Patches of a clip.
        device: Where to put them.
        dtype: Of spectrograms and targets.
        workers: Processes that load beside the training.
        lock: The file that holds the run's folder, which those processes must not go on holding.

    Yields:
        What the items hold, stacked, and ``noise``, which chooses the masks, (clips, patches).

    Raises:
        WorkFailedError: A loader process ended without a word. Its own errors are raised as they are.
    """
    on_gpu = device.type == "cuda"
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        _Telling(items),
        batch_sampler=Shares(steps, share),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=on_gpu,
        worker_init_fn=partial(_begin_worker, lock=lock),
        generator=torch.Generator(),  # else it draws from the caller's random state
    )
    stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
    for step, batch in zip(steps.steps, _loaded(loader), strict=True):
        # Drawn for the whole batch: masks do not depend on the number of processes.
        batch["noise"] = mask_noise(steps.seed, step, steps.batch_size, patches)[share]
        yield {name: _to_device(tensor, dtype, stream) for name, tensor in batch.items()}


@dataclass(frozen=True)
class _Failure:
    """An error of a loader process on its way to the training process, where torch would make it a page."""

    kind: type[Exception]
    told: str
    trace: str


class _LoaderTraceback(Exception):  # noqa: N818  # the cause of an error, printed above it
    """What the traceback said in the loader process."""


class _Telling(Dataset[dict[str, Tensor]]):
    """Items whose sentences for people, in a loader process, come back in place of a batch."""

    def __init__(self, items: Dataset[dict[str, Tensor]]) -> None:
        self.items = items

    def __getitems__(self, keys: list[Key]) -> list[dict[str, Tensor]] | _Failure:
        try:
            if several := getattr(self.items, "__getitems__", None):
                found: list[dict[str, Tensor]] = several(keys)
                return found
            return [self.items[key] for key in keys]
        except TOLD as error:
            if get_worker_info() is None:
                raise
            kind = next(kind for kind in TOLD if isinstance(error, kind))
            return _Failure(kind, str(error), traceback.format_exc())


def _collate(found: list[dict[str, Tensor]] | _Failure) -> dict[str, Tensor] | _Failure:
    return found if isinstance(found, _Failure) else collate(found)


def _loaded(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise batch.kind(batch.told) from _LoaderTraceback(f"\n{batch.trace}")
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkFailedError(
            f"a loader process ended without a word ({error}): out of memory, or did a file of the data "
            f"change? The same command continues from the last saved state"
        ) from error


def _to_device(tensor: Tensor, dtype: torch.dtype, stream: Any) -> Tensor:
    """Copy without waiting: the device waits for the copy, not this process."""
    if tensor.is_floating_point() and dtype == torch.float64:
        tensor = tensor.to(dtype)
    if stream is None:
        return tensor
    with torch.cuda.stream(stream):
        moved = tensor.pin_memory().to(stream.device, non_blocking=True)
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    moved.record_stream(current)  # its memory is not given away while the step still reads it
    return moved


def _begin_worker(worker: int, *, lock: Path | None) -> None:
    """Make a loader process the training process's servant, and no more."""
    # A cluster sends SIGTERM to all, and the training process needs one more batch before it stops. Not for
    # ever: a program that ends by an error sends SIGTERM too, and waits until this process is gone.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    # Forked, it holds what the training process holds, and would for some seconds after that one was killed.
    descriptors = Path("/proc/self/fd")
    if lock is None or not lock.exists() or not descriptors.is_dir():
        return
    for name in [path.name for path in descriptors.iterdir()]:
        try:
            if os.path.samestat(os.fstat(int(name)), lock.stat()):
                os.close(int(name))
        except OSError:  # the listing's own descriptor
            continue
