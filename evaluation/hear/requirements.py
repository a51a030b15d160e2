"""Is what the official HEAR tools need installed, in versions that work? If not: the line to type.

The metadata of the two official packages asks for what no current Python can install, so pip cannot
check this for us: they are installed with ``--no-deps``, and their needs are looked at here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection
from importlib.metadata import PackageNotFoundError, version

from hear_m2d.utils.errors import MissingPackageError

HEAREVAL = "2021.1.3"
HEARVALIDATOR = "2021.0.6"
INSTALL_EXTRA = "python -m pip install 'hear-m2d[evaluation]'"
INSTALL_HEAREVAL = f"python -m pip install --no-deps heareval=={HEAREVAL}"
INSTALL_HEARVALIDATOR = (
    f"python -m pip install --no-deps --ignore-requires-python hearvalidator=={HEARVALIDATOR}"
)
INSTALL_EVALUATE = f"{INSTALL_EXTRA} && {INSTALL_HEAREVAL}"
INSTALL_LIGHTNING = "python -m pip install 'pytorch-lightning==1.9.5'"
INSTALL_SETUPTOOLS = "python -m pip install 'setuptools>=77.0.3,<82'"
INSTALL_NVML = "python -m pip install nvidia-ml-py"

EXTRA = {  # module to import: name to install
    "pytorch_lightning": "pytorch-lightning",
    "sed_eval": "sed_eval",
    "dcase_util": "dcase_util",
    "intervaltree": "intervaltree",
    "more_itertools": "more-itertools",
    "pandas": "pandas",
    "scipy": "scipy",
    "slugify": "python-slugify",
    "sklearn": "scikit-learn",
    "torchinfo": "torchinfo",
}


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_importable(module: str) -> bool:
    """Say whether a top-level module could be imported, without importing it."""
    if module in sys.modules:  # find_spec() raises for a stand-in without a spec
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def check_installed(
    tool: str,
    *,
    without: Collection[str] = (),
    find_version: Callable[[str], str | None] = package_version,
    find_module: Callable[[str], bool] = is_importable,
) -> None:
    """Raise if an official tool could not work with what is installed.

    Args:
        tool: The tool's module; its first part is the package it belongs to.
        without: Names of run-time repairs that will be left out: R7 stands in for ``pkg_resources``.
        find_version: Looks up an installed version; tests pass their own.
        find_module: Looks up a module; tests pass their own.

    Raises:
        ImportError: If a package is missing or of the wrong version; the message has the line to type.
    """
    if tool.startswith("hearvalidator"):
        _check_exact("hearvalidator", HEARVALIDATOR, INSTALL_HEARVALIDATOR, find_version)  # I1
        return
    _check_exact("heareval", HEAREVAL, INSTALL_HEAREVAL, find_version)  # I2
    if missing := [package for module, package in EXTRA.items() if not find_module(module)]:
        raise MissingPackageError(
            f"heareval needs {', '.join(missing)}, not installed. "
            f"Type: {INSTALL_EXTRA} (in a checkout: make install)"
        )
    _check_lightning(find_version("pytorch-lightning"))
    if "R7" in without and not find_module("pkg_resources"):  # V1
        raise MissingPackageError(
            "pkg_resources is missing: setuptools removed it in version 82, found "
            f"{find_version('setuptools') or 'none'}. Type: {INSTALL_SETUPTOOLS}"
        )
    _check_nvml(find_module)


def _check_exact(package: str, wanted: str, install: str, find_version: Callable[[str], str | None]) -> None:
    """I1, I2: the official packages, in the versions that the repairs were made for."""
    found = find_version(package)
    if found is None:
        raise MissingPackageError(f"{package} is not installed. Type: {install}")
    if found != wanted:
        raise MissingPackageError(f"{package} {found} is installed, {wanted} is needed. Type: {install}")


def _check_lightning(found: str | None) -> None:
    """V2, V3: heareval needs hooks that Lightning 2 dropped; 1.6 and 1.7 do not import any more."""
    series = tuple(int(part) for part in (found or "0.0").split(".")[:2])
    if series not in {(1, 8), (1, 9)}:
        raise MissingPackageError(
            f"heareval works with pytorch-lightning 1.8 or 1.9, found {found}. Type: {INSTALL_LIGHTNING}"
        )


def _check_nvml(find_module: Callable[[str], bool]) -> None:
    """R4: where torch sees a GPU, heareval imports pynvml, which the package nvidia-ml-py holds."""
    import torch

    if torch.cuda.is_available() and not find_module("pynvml"):
        raise MissingPackageError(f"heareval needs pynvml beside a GPU, not installed. Type: {INSTALL_NVML}")
