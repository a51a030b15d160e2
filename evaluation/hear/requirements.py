"""Check that what the official HEAR tools need is installed; if not, the error has the line to type.

The metadata of the two official packages requires what no current Python can install, so they are installed
with ``--no-deps``. What they really need is the extra ``evaluation``, which is checked here.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from hear_m2d.utils.errors import MissingPackageError

HEAREVAL = "heareval==2021.1.3"
HEARVALIDATOR = "hearvalidator==2021.0.6"
INSTALL_EXTRA = "python -m pip install 'hear-m2d[evaluation]'"
INSTALL_HEAREVAL = f"python -m pip install --no-deps {HEAREVAL}"
INSTALL_HEARVALIDATOR = f"python -m pip install --no-deps --ignore-requires-python {HEARVALIDATOR}"
INSTALL_EVALUATE = f"{INSTALL_EXTRA} && {INSTALL_HEAREVAL}"

REPAIRED = {"setuptools", "nvidia-ml-py"}  # run-time repairs R7 and R4 replace these


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_installed(tool: str) -> None:
    """Raise if an official tool could not work with what is installed.

    Args:
        tool: The tool's module; its first part is the package it belongs to.

    Raises:
        MissingPackageError: If a package is missing or of the wrong version; with the line to type.
    """
    if tool.startswith("hearvalidator"):
        _check([HEARVALIDATOR], INSTALL_HEARVALIDATOR)
        return
    _check([HEAREVAL], INSTALL_HEAREVAL)
    extra = [line for line in requires("hear-m2d") or [] if "extra ==" in line]
    _check(extra, f"{INSTALL_EXTRA} (in a checkout: make install)")


def _check(lines: list[str], install: str) -> None:
    problems = []
    for requirement in map(Requirement, lines):
        if requirement.name in REPAIRED:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": "evaluation"}):
            continue
        installed = package_version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name}{requirement.specifier} ({installed or 'not installed'})")
    if problems:
        raise MissingPackageError(f"the official HEAR tools need {', '.join(problems)}. Type: {install}")
