"""The installed version of this package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version of hear-m2d; of a checkout that is not installed, a text that says so."""
    try:
        return version("hear-m2d")
    except PackageNotFoundError:
        return "(a checkout that is not installed: make install, or pip install -e .)"
