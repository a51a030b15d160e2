"""Run the official hear-validator on a module; of the extra `evaluation` it needs only `hearvalidator`."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.hear.compat import VALIDATOR, run_tool
from hear_m2d.evaluation.hear.settings import OURS, check_model
from hear_m2d.utils.device import pick_device
from hear_m2d.utils.errors import InputError, WorkFailedError

WITH_OPTIONS = "hear_module_with_options"


def validate(
    model: str | os.PathLike[str] | None = None,
    *,
    module: str = OURS,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Let the official validator check a module; it prints what it does, and `Looks good!` at the end.

    Args:
        model: Argument of the module's ``load_model``: a path; for our own module also a name or an address.
            None: ``load_model`` gets no argument.
        module: The module with the HEAR API.
        device: As torch names it; None takes the GPU where there is one.
        options: Keyword arguments of ``load_model``.

    Raises:
        InputError: If hearvalidator or the module is missing, there is no such device here, or the model
            could not be loaded.
        OSError: If there is no such checkpoint, or it cannot be read or downloaded.
        WorkFailedError: If the validator refuses the module, or the module fails while it is checked.
    """
    arguments = [] if model is None else ["--model", os.fspath(check_model(model, module=module))]
    arguments += [] if device is None else ["--device", str(pick_device(device))]
    try:
        with _working_directory_importable(), _module_with_options(module, options or {}) as name:
            run_tool(VALIDATOR, [name, *arguments])
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # the validator's ModelError derives from BaseException
        if not isinstance(error, Exception) or not _while_loading(error):
            raise WorkFailedError(f"the validator refused {module}: {_sentence(error)}") from error
        if isinstance(error, InputError | OSError):
            raise
        text = str(error) if type(error) in {ValueError, ModuleNotFoundError} else _sentence(error)
        raise InputError(f"{module} could not be loaded: {text}") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Find a HEAR module in the working directory too, after everything installed, as `evaluate` does."""
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _module_with_options(module: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name of a module whose ``load_model`` has the options set: the validator cannot pass any."""
    if not options:
        yield module
        return
    original = importlib.import_module(module)
    filled: Any = types.ModuleType(WITH_OPTIONS)
    vars(filled).update({name: value for name, value in vars(original).items() if not name.startswith("__")})
    filled.load_model = functools.partial(original.load_model, **options)
    sys.modules[WITH_OPTIONS] = filled
    try:
        yield WITH_OPTIONS
    finally:
        del sys.modules[WITH_OPTIONS]


def _while_loading(error: Exception) -> bool:
    """Return whether the checkpoint or the module failed before anything was checked."""
    trace, names = error.__traceback__, set()
    while trace is not None:
        names.add(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return "validate_model" not in names


def _sentence(error: BaseException) -> str:
    kind = type(error).__name__
    return str(error) if kind == "ModelError" else f"{kind}: {error}"
