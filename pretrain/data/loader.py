"""The batches of a run, for one process: its share of each step's clips and masks, on its device.

Everything is a function of (seed, step): a resumed run, or one with another number of processes, gets the
same batches.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hear_m2d.pretrain.data.crops import Batch, Items
from hear_m2d.pretrain.data.sampling import Key, StepBatches
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.utils.errors import InputError, WorkFailedError

GRACE_S = 30  # seconds that a loader process continues after SIGTERM; the same as torchrun's
_PR_SET_PDEATHSIG = 1  # an option of Linux's prctl
_PREFETCH = 2  # batches that each loader process prepares ahead
_SHARED_MEMORY = Path("/dev/shm")


def batches(
    items: Items,
    steps: StepBatches,
    *,
    share: slice,
    patches: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Yield this process's part of each step's batch, on its device.

    These are the tensors of the items, stacked, and ``noise``, which chooses the masks, (clips, patches). On
    a GPU, copies run in parallel with the computation: from pinned memory, on a separate stream.

    Args:
        items: Items by (epoch, clip).
        steps: Which steps.
        share: Which of a batch's clips are this process's.
        patches: Patches of a clip.
        device: Device of the batches.
        dtype: Of spectrograms and targets.
        workers: Processes that load while the network trains.

    Raises:
        InputError: There is too little shared memory for the loader processes.
        WorkFailedError: A loader process died. An error in one is raised as if there were no processes.
    """
    if workers and len(steps):
        _check_shared_memory(items, steps.keys(steps.steps[0])[share], workers)
    on_gpu = device.type == "cuda"
    stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
    loader: DataLoader[Batch] = DataLoader(
        items,  # type: ignore[arg-type]  # it needs no more than __getitems__
        batch_sampler=(keys[share] for keys in steps),
        num_workers=workers,
        prefetch_factor=_PREFETCH if workers else None,
        collate_fn=dict,  # stacked already
        pin_memory=on_gpu,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # otherwise it uses the caller's random state
    )
    for step, batch in zip(steps.steps, _load(loader, items, steps, share), strict=True):
        # Drawn for the whole batch: masks do not depend on the number of processes.
        batch["noise"] = mask_noise(steps.seed, step, steps.batch_size, patches)[share]
        yield {name: _to_device(tensor, dtype, stream) for name, tensor in batch.items()}


def _load(loader: DataLoader[Batch], items: Items, steps: StepBatches, share: slice) -> Iterator[Batch]:
    """Yield the loader's batches; turn the failure of a loader process into an error of this one."""
    others = multiprocessing.active_children()
    loaded = iter(loader)
    processes = [child for child in multiprocessing.active_children() if child not in others]
    for step in steps.steps:
        try:
            batch = next(loaded)
        except Exception as error:
            if not processes:
                raise
            codes = [process.exitcode for process in processes if process.exitcode is not None]
            if not codes:
                # torch raises an error whose text is the traceback. Items depend on their keys only: the
                # error itself is raised again here.
                items.__getitems__(steps.keys(step)[share])
            reason = f"exit code {codes[0]}" if codes else type(error).__name__
            raise WorkFailedError(
                f"a loader process failed ({reason}), perhaps for lack of memory, or of shared memory "
                f"({_SHARED_MEMORY}). The same command continues from the last saved state"
            ) from error
        yield batch


def _check_shared_memory(items: Items, keys: list[Key], workers: int) -> None:
    """Refuse to start loader processes that would be killed when shared memory is full."""
    if not _SHARED_MEMORY.is_dir():
        return
    item = items.__getitems__(keys[:1])
    size = len(keys) * sum(tensor.nbytes for tensor in item.values())
    needed, free = (_PREFETCH * workers + 1) * size, shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"{workers} loader processes need {needed / 2**20:.0f} MiB of shared memory for batches of "
            f"{size / 2**20:.0f} MiB, and {_SHARED_MEMORY} has {free / 2**20:.0f} MiB free: give the "
            f"container more (docker run --shm-size=8g), or load without processes (--workers 0)"
        )


def _to_device(tensor: Tensor, dtype: torch.dtype, stream: Any) -> Tensor:
    """Copy without waiting: the device waits for the copy, this process does not."""
    if tensor.is_floating_point() and dtype == torch.float64:
        tensor = tensor.to(dtype)
    if stream is None:
        return tensor
    with torch.cuda.stream(stream):
        moved = tensor.pin_memory().to(stream.device, non_blocking=True)
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    moved.record_stream(current)  # its memory is not reused while the step still reads it
    return moved


def _begin_worker(worker: int) -> None:
    """Let a loader process continue for a while after SIGTERM, but end with its parent."""
    # A cluster sends SIGTERM to all processes, and the training process needs one more batch before it stops.
    # But not forever: a program that ends by an error also sends SIGTERM, and waits until this process ends.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    if sys.platform == "linux":  # otherwise it would keep the run's folder locked after its parent is killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
