"""The lowest allowed version of every requirement of the core: `python tests/house/lowest.py`.

Prints what pip is to install, a line each, read from pyproject.toml (`make test-lowest`).
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lowest(pyproject: str) -> list[str]:
    """Return ``name==version`` for each requirement ``name>=version`` of the core.

    Raises:
        ValueError: A requirement of another form: the core's only bounds are lower ones.
    """
    pins = []
    for requirement in tomllib.loads(pyproject)["project"]["dependencies"]:
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if not found:
            raise ValueError(f"the core's requirement {requirement!r} is not of the form name>=version")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest((ROOT / "pyproject.toml").read_text())))
