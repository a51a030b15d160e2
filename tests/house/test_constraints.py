"""constraints.txt: the same commit installs the same way next year."""

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def constraints(repo_root):
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines]


def name_of(text):
    return re.sub(r"[-_.]+", "-", text).lower()


def test_every_constraint_is_one_exact_version_and_no_address(constraints, repo_root):
    for constraint in constraints:
        assert re.fullmatch(r"==[^*,]+", str(constraint.specifier)), constraint
    assert "/" not in (repo_root / "constraints.txt").read_text()


def test_everything_that_make_install_asks_for_is_constrained(constraints, repo_root):
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {Requirement(text) for text in (*project["dependencies"], *extras["dev"])}
    (ours,) = (requirement for requirement in asked if requirement.name == "hear-m2d")
    asked |= {Requirement(text) for extra in ours.extras for text in extras[extra]}
    names = {name_of(requirement.name) for requirement in asked - {ours}}
    assert names | {"pip", "heareval", "hearvalidator"} <= {name_of(c.name) for c in constraints}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_each_python_gets_one_version_of_a_package_on_linux(constraints, python):
    environment = {
        "python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    names = [name_of(c.name) for c in constraints if c.marker is None or c.marker.evaluate(environment)]
    assert len(names) == len(set(names))
    assert {"torch", "torchaudio", "torchvision", "numpy", "timm"} <= set(names)


def test_torch_torchaudio_and_torchvision_load_together():
    code = "import torch, torchaudio, torchvision; torchaudio.transforms.GriffinLim()(torch.ones(201, 9))"
    subprocess.run([sys.executable, "-c", code], check=True)
