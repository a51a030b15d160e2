"""Run mypy --strict over the package as it is installed: `python tests/house/typecheck.py`.

The parts `pretrain` and `evaluation` are `hear_m2d.pretrain` and `hear_m2d.evaluation` only once
installed, and static tools cannot read the editable install's import hook. So the wheel is unpacked, mypy
runs there, outside the checkout's top, and must have looked at as many files as the checkout holds.
"""

import fcntl
import re
import shutil
import subprocess
import sys
import zipfile

from build_wheel import ROOT, build_wheel

PARTS = ("hear_m2d", "pretrain", "evaluation")


def number_checked(output: str) -> int:
    """Read from mypy's closing line how many files it checked."""
    found = re.search(r"(?:no issues found in|checked) (\d+) source files?", output)
    return int(found[1]) if found else 0


def complaint(output: str, expected: int) -> str:
    """Say what is wrong where mypy checked another number of files than expected, else nothing."""
    checked = number_checked(output)
    if checked == expected:
        return ""
    return (
        f"mypy checked {checked} files, the checkout holds {expected} under {', '.join(PARTS)}: "
        "one is missing from the wheel ([tool.setuptools] in pyproject.toml), or stands in a nested package."
    )


def main() -> int:
    """Check the unpacked wheel; return the exit code."""
    place = ROOT / "build" / "typecheck"  # always the same, so that mypy's cache serves again
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(place / "hear_m2d", ignore_errors=True)
        wheel, files = build_wheel(place)
        archive = zipfile.ZipFile(wheel)  # mypy would count a folder of data as one more, a namespace
        archive.extractall(place, [name for name in archive.namelist() if name.endswith(".py")])
        wheel.unlink()
        command = [sys.executable, "-m", "mypy", "-p", "hear_m2d", "--cache-dir", str(ROOT / ".mypy_cache")]
        command += ["--config-file", str(ROOT / "pyproject.toml")]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    expected = sum(path.suffix == ".py" and path.parts[0] in PARTS for path in files)
    output = re.sub(r"^hear_m2d/(pretrain|evaluation)/", r"\1/", done.stdout + done.stderr, flags=re.M)
    print(output.strip())
    if wrong := complaint(output, expected):
        print(wrong)
    return done.returncode or bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
