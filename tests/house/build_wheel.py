"""Build the wheel as a fresh clone would: `python tests/house/build_wheel.py OUT`.

setuptools reuses `build/lib`, where files deleted from the checkout live on. So the files that git
knows (or would add) are copied to an empty folder, and the wheel is built there, without network.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tracked_files(root: Path = ROOT, *, new: bool = True) -> list[Path]:
    """List the files of the checkout, relative to it: tracked, or, if `new`, not ignored."""
    chosen = ["-co", "--exclude-standard"] if new else ["-c"]
    command = ["git", "-c", f"safe.directory={root}", "ls-files", *chosen, "-z"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in sorted(set(listing.split("\0"))) if name and (root / name).is_file()]


def copy_checkout(target: Path) -> list[Path]:
    """Copy the files that git knows to an empty folder and return their list."""
    files = tracked_files()
    for path in files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target / path)
    return files


def build_wheel(out: Path) -> tuple[Path, list[Path]]:
    """Build the wheel into a folder; return its path and the files of the checkout it was built from."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        files = copy_checkout(Path(folder) / "source")
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        done = subprocess.run([*command, f"{folder}/source"], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"The wheel does not build:\n{done.stdout}{done.stderr}")
        (wheel,) = Path(folder).glob("*.whl")
        return Path(shutil.copy(wheel, out / wheel.name)), files


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1]))[0])
