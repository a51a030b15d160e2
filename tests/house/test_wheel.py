"""What lands in site-packages, and that it works there."""

import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel, installed by pip into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, str(target), str(wheel[0])], check=True)
    return target


def test_wheel_holds_exactly_the_files_of_the_three_parts(wheel):
    path, expected = wheel
    names = set(zipfile.ZipFile(path).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == expected, (
        f"missing from the wheel: {sorted(expected - packaged)}; too many: {sorted(packaged - expected)}. "
        "See [tool.setuptools] in pyproject.toml"
    )
    assert {name.split("/")[0] for name in packaged} == {"hear_m2d"}


def test_wheel_carries_the_license_and_its_type_marker(wheel):
    path, _ = wheel
    names = zipfile.ZipFile(path).namelist()
    assert "hear_m2d/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_core_has_only_lower_bounds(wheel):
    path, _ = wheel
    archive = zipfile.ZipFile(path)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert core
    assert not [line for line in core if any(mark in line for mark in ("<", "==", "~=", "!=", "torchaudio"))]


def test_wheel_runs_from_another_directory(site, python_beside):
    script = (
        "import hear_m2d, hear_m2d.pretrain, hear_m2d.evaluation as e; print(hear_m2d.__file__, e.__file__)"
    )
    done = python_beside(site, "-c", script)
    assert done.returncode == 0, done.stderr
    assert [str(site) in place for place in done.stdout.split()] == [True, True]


def test_every_module_of_the_wheel_imports(wheel, site, python_beside):
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in wheel[1]
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    done = python_beside(site, "-c", "; ".join(f"import {module}" for module in modules))
    assert done.returncode == 0, done.stderr


def test_command_of_the_wheel_lists_the_commands_of_every_part(site, python_beside):
    done = python_beside(site, str(site / "bin" / "hear-m2d"), "--help")
    assert done.returncode == 0, done.stderr
    for command in ("info", "prepare", "pretrain", "visualize", "validate", "evaluate"):
        assert f"  {command} " in done.stdout


def test_command_of_the_wheel_knows_its_version(wheel, site, python_beside):
    done = python_beside(site, str(site / "bin" / "hear-m2d"), "--version")
    assert done.returncode == 0, done.stderr
    assert wheel[0].name.split("-")[1] in done.stdout
