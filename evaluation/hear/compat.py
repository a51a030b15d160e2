"""Repairs that the official HEAR packages need on a current Python: made at run time, undone afterwards.

heareval 2021.1.3 and hearvalidator 2021.0.6 run unmodified. Each repair below is one small context manager
with a name. It is made only around an official tool and undone when the tool ends; ``import hear_m2d``
repairs nothing. To start a tool with its repairs from the command line::

    python -m hear_m2d.evaluation.hear.compat heareval.embeddings.runner hear_m2d …
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from hear_m2d.evaluation.hear.requirements import check_installed
from hear_m2d.utils.errors import InputError, unknown_name

VALIDATOR = "hearvalidator.validate"
EMBEDDINGS = "heareval.embeddings.runner"
PREDICTIONS = "heareval.predictions.runner"

AGED_WARNINGS = (
    "pkg_resources is deprecated",
    r"Deprecated call to `pkg_resources",
    "Implicit dimension choice for softmax",
    ".*'pin_memory' argument is set as true but no accelerator",
)

UNUSED_PACKAGES = ("torchvision", "transformers")  # the kit computes its scores with scikit-learn


@contextmanager
def aged_warnings() -> Iterator[None]:
    """N1: hide warnings that are only caused by the age of the packages."""
    with warnings.catch_warnings():
        for message in AGED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def unused_packages() -> Iterator[None]:
    """N2: Lightning imports all of torchmetrics, whose image and text metrics take a third of the start."""
    from lightning_utilities.core.imports import RequirementCache

    is_met = RequirementCache.__bool__

    def is_used(cache: Any) -> bool:
        return not str(cache.requirement).startswith(UNUSED_PACKAGES) and is_met(cache)

    with patch.object(RequirementCache, "__bool__", is_used):
        yield


@contextmanager
def pkg_resources_stand_in() -> Iterator[None]:
    """R7: setuptools 82 removed ``pkg_resources``, of which the packages call one function at import."""
    if _is_importable("pkg_resources"):
        yield
        return
    stand_in: Any = types.ModuleType("pkg_resources")
    stand_in.declare_namespace = lambda name: None
    with _in_sys_modules("pkg_resources", stand_in):
        yield


@contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """R1: the validator and the embeddings runner import tensorflow even for a torch model.

    The stand-in is used even where tensorflow is installed: the real one takes 0.7 GB and refuses to start
    beside a GPU that only torch sees. For a model written in tensorflow, leave R1 out.
    """
    stand_in: Any = types.ModuleType("tensorflow")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)  # find_spec() raises without one
    stand_in.__version__ = "0.0.0+stand-in"
    stand_in.Module = type("Module", (), {})  # used only as the second argument of isinstance
    stand_in.test = types.SimpleNamespace(is_gpu_available=lambda *args, **kwargs: False)
    with _in_sys_modules("tensorflow", stand_in):
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in {"heareval", "hearvalidator"}]:
                if vars(sys.modules[name]).get("tf") is stand_in:
                    del sys.modules[name]


@contextmanager
def tensorflow_sees_the_gpu() -> Iterator[None]:
    """R6: the embeddings runner stops where torch sees a GPU and tensorflow does not."""
    if not _is_importable("tensorflow"):
        yield
        return
    import tensorflow

    with patch.object(tensorflow.test, "is_gpu_available", lambda *args, **kwargs: True):
        yield


@contextmanager
def nvml_stand_in() -> Iterator[None]:
    """R4: on a machine with a GPU the kit starts NVML when it is imported, but a container may lack NVML.

    With the stand-in the kit notes no GPU memory, as it does where NVML refuses to answer.
    """
    import torch

    if not torch.cuda.is_available() or _nvml_starts():
        yield
        return
    stand_in: Any = types.ModuleType("pynvml")
    stand_in.NVMLError = type("NVMLError", (Exception,), {})

    def refuse(*args: Any) -> None:
        raise stand_in.NVMLError("NVML is not available")

    stand_in.nvmlInit = lambda: None
    stand_in.nvmlDeviceGetHandleByIndex = refuse
    stand_in.nvmlDeviceGetMemoryInfo = stand_in.nvmlDeviceGetName = refuse
    with _in_sys_modules("pynvml", stand_in):
        yield


def _nvml_starts() -> bool:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or one of NVML's own errors
        return False
    return True


@contextmanager
def trusted_checkpoint_names() -> Iterator[None]:
    """R2: torch loads plain weights only; the kit's own checkpoints name these five harmless things."""
    import torch

    names: list[Any] = [
        torch.nn.Identity,
        torch.nn.BatchNorm1d,
        torch.optim.Adam,
        torch.nn.init.xavier_uniform_,
        torch.nn.init.xavier_normal_,
    ]
    with torch.serialization.safe_globals(names):
        yield


@contextmanager
def settable_epoch() -> Iterator[None]:
    """R3: the kit sets ``fit_loop.current_epoch`` before the test; since Lightning 1.6 that does nothing."""
    from pytorch_lightning.loops.fit_loop import FitLoop

    def read(loop: Any) -> Any:
        return loop.epoch_progress.current.completed

    def write(loop: Any, epoch: int) -> None:
        loop.epoch_progress.current.completed = epoch

    with patch.object(FitLoop, "current_epoch", property(read, write), create=True):
        yield


@contextmanager
def gpu_name_as_text() -> Iterator[None]:
    """R5: newer NVML bindings return the GPU's name as text, which the kit then tries to decode."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    gpu_max_mem = importlib.import_module("heareval.gpu_max_mem")
    with patch.object(gpu_max_mem, "device_name", lambda index=0: torch.cuda.get_device_name(index)):
        yield


@contextmanager
def cublas_workspace() -> Iterator[None]:
    """R8: torch below 2.10 reads this variable at its first matrix product on a GPU, and never again.

    The kit trains deterministically, and Lightning sets the variable too late: after the embeddings.
    """
    known = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with patch.dict(os.environ, {"CUBLAS_WORKSPACE_CONFIG": known}):
        yield


@contextmanager
def deterministic_mode_restored() -> Iterator[None]:
    """R9: the kit leaves torch's deterministic algorithms on, so that later embeddings could differ."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Repair:
    """One repair: its name, the context manager that makes and undoes it, the tools that need it."""

    name: str
    make: Callable[[], AbstractContextManager[None]]
    tools: tuple[str, ...]


REPAIRS = (  # in the order in which they are made: N2 and R7 before what imports Lightning, R4 before R5
    Repair("N1", aged_warnings, (VALIDATOR, EMBEDDINGS, PREDICTIONS)),
    Repair("N2", unused_packages, (PREDICTIONS,)),
    Repair("R7", pkg_resources_stand_in, (EMBEDDINGS, PREDICTIONS)),
    Repair("R1", tensorflow_stand_in, (VALIDATOR, EMBEDDINGS)),
    Repair("R6", tensorflow_sees_the_gpu, (EMBEDDINGS,)),
    Repair("R4", nvml_stand_in, (EMBEDDINGS, PREDICTIONS)),
    Repair("R5", gpu_name_as_text, (EMBEDDINGS, PREDICTIONS)),
    Repair("R8", cublas_workspace, (EMBEDDINGS, PREDICTIONS)),
    Repair("R9", deterministic_mode_restored, (PREDICTIONS,)),
    Repair("R2", trusted_checkpoint_names, (PREDICTIONS,)),
    Repair("R3", settable_epoch, (PREDICTIONS,)),
)


@contextmanager
def repaired(tool: str, *, without: Collection[str] = ()) -> Iterator[None]:
    """Make the repairs that one official tool needs, and undo them at the end.

    Args:
        tool: The module of the tool, one of those named above.
        without: Names of repairs to leave out.

    Raises:
        InputError: If the tool or a name in ``without`` is unknown.
    """
    check_names(tool, without)
    with ExitStack() as stack:
        for repair in REPAIRS:
            if tool in repair.tools and repair.name not in without:
                stack.enter_context(repair.make())
        yield


def check_names(tool: str, without: Collection[str] = ()) -> None:
    """Raise an InputError with the nearest known names if the tool or a repair is unknown."""
    if tool not in (tools := {name for repair in REPAIRS for name in repair.tools}):
        raise InputError(unknown_name("tool", tool, tools))
    for name in without:
        if name not in (names := [repair.name for repair in REPAIRS]):
            raise InputError(unknown_name("repair", name, names))


def run_tool(tool: str, args: Sequence[str], *, without: Collection[str] = ()) -> None:
    """Run an official tool unmodified in this process, as ``python -m TOOL ARGS…`` would.

    Args:
        tool: The tool's module.
        args: Its command-line arguments.
        without: Names of repairs to leave out.

    Raises:
        InputError: If a package is missing or of the wrong version; the message has the line to type.
        SystemExit: If the tool ends with a code other than 0.
    """
    check_installed(tool)
    with repaired(tool, without=without), patch.object(sys, "argv", [tool, *args]):
        try:
            runpy.run_module(tool, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise


def _is_importable(module: str) -> bool:
    if module in sys.modules:  # find_spec() raises for a stand-in without a spec
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _in_sys_modules(name: str, module: types.ModuleType) -> Iterator[None]:
    absent = object()
    before: Any = sys.modules.get(name, absent)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is absent:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before


def main() -> None:
    """Start ``TOOL ARGS…``; the exit code is the tool's own, 2 for bad usage."""
    tool, *args = sys.argv[1:] or [""]
    try:
        if not tool:
            raise InputError("usage: python -m hear_m2d.evaluation.hear.compat TOOL ARGS…")
        check_names(tool)
        check_installed(tool)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.path.insert(0, "")  # as `python -m TOOL` has it: a model's module may be in the working directory
    run_tool(tool, args)


if __name__ == "__main__":
    main()
