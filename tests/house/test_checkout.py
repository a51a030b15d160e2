"""An editable install is what we develop with; a checkout without one says what is missing."""

import re
import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkout(build_script, tmp_path):
    """A copy of the checkout that nothing has installed."""
    build_script.copy_checkout(tmp_path / "checkout")
    return tmp_path / "checkout"


def test_make_installs_the_checkout_editable(repo_root):
    assert re.search(r"pip install .*--editable", (repo_root / "Makefile").read_text())


def test_tests_run_against_the_editable_install(repo_root):
    import hear_m2d.evaluation
    import hear_m2d.pretrain

    assert Path(hear_m2d.pretrain.__file__) == repo_root / "pretrain" / "__init__.py"
    assert Path(hear_m2d.evaluation.__file__) == repo_root / "evaluation" / "__init__.py"


@pytest.mark.parametrize("part", ["pretrain", "evaluation", "pretrain.training", "evaluation.hear"])
def test_checkout_that_is_not_installed_says_so(checkout, python_beside, part):
    done = python_beside(checkout, "-c", f"import hear_m2d.{part}", cwd=checkout)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: hear_m2d.")
    assert "checkout that is not installed" in last
    assert "make install" in last
    assert "pip install -e ." in last


def test_core_of_a_checkout_that_is_not_installed_still_imports(checkout, python_beside):
    done = python_beside(checkout, "-c", "import hear_m2d; print(hear_m2d.__file__)", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert str(checkout) in done.stdout


def test_command_line_of_a_checkout_that_is_not_installed_says_its_version(checkout, python_beside):
    done = python_beside(checkout, "-m", "hear_m2d.cli", "--version", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout


def test_other_missing_modules_are_python_s_own_business(checkout, python_beside):
    done = python_beside(checkout, "-c", "import hear_m2d.nonesuch", cwd=checkout)
    assert "No module named 'hear_m2d.nonesuch'" in done.stderr


def test_an_installed_package_keeps_the_import_system_as_it_was():
    import hear_m2d._checkout

    hear_m2d._checkout.explain_missing_parts()
    assert hear_m2d._checkout.MissingPartFinder not in sys.meta_path
