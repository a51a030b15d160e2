"""The lowest allowed versions, as `make test-lowest` installs them."""

import importlib.util

import pytest


@pytest.fixture(scope="module")
def lowest(repo_root):
    spec = importlib.util.spec_from_file_location("lowest", repo_root / "tests" / "house" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lowest


def test_every_requirement_of_the_core_has_a_lower_bound_and_no_other(lowest, repo_root):
    text = (repo_root / "pyproject.toml").read_text()
    pins = lowest(text)
    assert {pin.split("==")[0] for pin in pins} >= {"torch", "timm", "numpy", "safetensors"}
    assert all(pin.replace("==", ">=") in text for pin in pins)


@pytest.mark.parametrize(
    "requirement", ["torch", "torch>=2.6,<3", "torch==2.6", "torch>=2.6; os_name == 'nt'"]
)
def test_a_requirement_of_another_form_is_named(lowest, requirement):
    with pytest.raises(ValueError, match="of the form name>=version"):
        lowest(f'[project]\ndependencies = ["timm>=1", "{requirement}"]')
