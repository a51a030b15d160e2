"""A module with the HEAR API: find its model, load it, and name everything of the API that it lacks.

Source: the HEAR 2021 API, https://hearbenchmark.com/hear-api.html.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import file_sha256

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
ATTRIBUTES = ("sample_rate", "scene_embedding_size", "timestamp_embedding_size")


def import_module(name: str) -> ModuleType:
    """Import a module with the HEAR API, which may also be a file in the working directory."""
    if not name or name.startswith(".") or "/" in name:
        raise InputError(f"{name!r} is not the name of a module, such as hearbaseline.naive")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # after everything installed
    return importlib.import_module(name)


def resolve_model(module: str, model: str | os.PathLike[str]) -> Path:
    """Return the path of a model: the official tools take only a file or folder that exists.

    A module may have a function ``resolve_model`` of its own, which turns a name into a path.

    Args:
        module: The module, as it is imported.
        model: A path, or a name that the module's ``resolve_model`` knows.

    Raises:
        InputError: If there is no such file or folder, and the module does not know the name.
    """
    path = Path(model)
    if path.exists():
        return path
    try:
        resolve = getattr(import_module(module), "resolve_model", None)
    except ImportError:  # reported when the module is loaded
        resolve = None
    if resolve is None:
        raise InputError(f"there is no checkpoint at {path}")
    return Path(resolve(os.fspath(model)))


def check_module(
    name: str,
    model_path: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    functions: Sequence[str] = FUNCTIONS,
    attributes: Sequence[str] = ATTRIBUTES,
) -> Any:
    """Load the model of a module, and check that both have what the HEAR API asks for.

    Nothing is embedded.

    Args:
        name: The module, as it is imported.
        model_path: What ``load_model`` gets; None: nothing.
        options: Keyword arguments of ``load_model``.
        functions: What the module must have.
        attributes: What the model must have.

    Returns:
        The model.

    Raises:
        ImportError: If the module cannot be imported.
        InputError: If functions of the module, or attributes of the model, are missing; each is named. A
            module without ``load_model`` has no model whose attributes could be checked.
    """
    module = import_module(name)
    missing = [f"the function {function}" for function in functions if not hasattr(module, function)]
    model = None
    if hasattr(module, "load_model"):
        arguments = [] if model_path is None else [os.fspath(model_path)]
        model = module.load_model(*arguments, **(options or {}))
        missing += [f"the model's {attribute}" for attribute in attributes if not hasattr(model, attribute)]
    if missing:
        raise InputError(f"{name} lacks parts of the HEAR API: {', '.join(missing)}")
    return model


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder."""
    if path.is_file():
        return file_sha256(path)
    total = hashlib.sha256()
    for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        total.update(f"{entry.relative_to(path).as_posix()} {sha256(entry)}\n".encode())
    return total.hexdigest()
