"""The type checker must have looked at every file (`make check` runs it)."""

import pytest


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("Success: no issues found in 23 source files\n", 23),
        ("Success: no issues found in 1 source file\n", 1),
        ("a.py:1: error: x  [y]\nFound 1 error in 1 file (checked 7 source files)\n", 7),
        ("mypy: can't read file\n", 0),
    ],
)
def test_number_of_checked_files_is_read_from_mypy_s_closing_line(typecheck_script, output, number):
    assert typecheck_script.number_checked(output) == number


def test_a_file_that_mypy_did_not_check_is_a_failure(typecheck_script):
    output = "Success: no issues found in 22 source files\n"
    assert typecheck_script.complaint(output, expected=22) == ""
    assert "checked 22 files, the checkout holds 23" in typecheck_script.complaint(output, expected=23)


def test_make_check_runs_it(repo_root):
    assert "tests/house/typecheck.py" in (repo_root / "Makefile").read_text()
