import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HOUSE = Path(__file__).parent
PARTS = {"hear_m2d": "hear_m2d", "pretrain": "hear_m2d/pretrain", "evaluation": "hear_m2d/evaluation"}


def load_script(name: str) -> ModuleType:
    """Load a script of this folder as a module, under its own name as when it runs."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HOUSE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def build_script() -> ModuleType:
    return load_script("build_wheel")


@pytest.fixture(scope="session")
def typecheck_script(build_script) -> ModuleType:
    return load_script("typecheck")


@pytest.fixture(scope="session")
def files(build_script) -> list[Path]:
    """The files of the checkout, relative to it."""
    return build_script.tracked_files()


@pytest.fixture(scope="session")
def python_files(files) -> list[Path]:
    return [path for path in files if path.suffix == ".py"]


@pytest.fixture(scope="session")
def wheel(build_script, tmp_path_factory) -> tuple[Path, set[str]]:
    """The wheel built from the checkout, and the names that it must hold."""
    path, files = build_script.build_wheel(tmp_path_factory.mktemp("wheel"))
    expected = {f"{PARTS[f.parts[0]]}/{'/'.join(f.parts[1:])}" for f in files if f.parts[0] in PARTS}
    return path, expected


@pytest.fixture
def python_beside(tmp_path):
    """Run this Python with a folder first on its path and the installed packages, all but hear-m2d.

    `-S` keeps the editable install's import hook out; a folder of links hides its metadata.
    """
    links = tmp_path / "packages"
    links.mkdir()
    for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(name).iterdir():
            if "hear_m2d" not in entry.name and not (links / entry.name).exists():
                (links / entry.name).symlink_to(entry)

    def run(folder: Path, *arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(links)])
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return run
