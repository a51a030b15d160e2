"""What may lie in the repository."""

import os
import subprocess
from pathlib import Path

import pytest

LONGEST = 400  # lines of a Python file
LARGEST = 30 * 2**20  # bytes of any file
# Spelled in halves: this file is searched too.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "X" + "XX ")
PARTS = ("hear_m2d", "pretrain", "evaluation")


def test_no_python_file_is_longer_than_a_chapter(python_files, repo_root):
    lengths = {path: len((repo_root / path).read_text().splitlines()) for path in python_files}
    assert not {str(path): length for path, length in lengths.items() if length > LONGEST}


def test_no_file_is_large(files, repo_root):
    assert not {str(path) for path in files if (repo_root / path).stat().st_size >= LARGEST}


def test_nothing_is_left_for_later(files, repo_root):
    found = set()
    for path in files:
        if path.name == "default_credits.md":  # authors are named as they name themselves
            continue
        text = (repo_root / path).read_bytes().decode(errors="ignore")
        found |= {f"{path}: {word.strip()}" for word in UNFINISHED if word in text}
    assert not found


def test_every_folder_with_python_files_is_a_listed_package(python_files, repo_root):
    """A package that is not listed in pyproject.toml is missing from the wheel."""
    import tomllib

    settings = tomllib.loads((repo_root / "pyproject.toml").read_text())["tool"]["setuptools"]
    roots = {folder: name for name, folder in settings["package-dir"].items()}
    folders = {path.parent.parts for path in python_files if path.parts[0] in PARTS}
    assert {".".join((roots[first], *rest)) for first, *rest in folders} == set(settings["packages"])


def test_every_python_file_of_a_part_says_what_it_is_for(python_files, repo_root):
    import ast

    silent = {
        str(path)
        for path in python_files
        if path.parts[0] in PARTS and not ast.get_docstring(ast.parse((repo_root / path).read_text()))
    }
    assert not silent


def test_make_alone_lists_every_target(repo_root):
    makefile = (repo_root / "Makefile").read_text()
    targets = makefile.split(".PHONY:")[1].splitlines()[0].split()
    done = subprocess.run(["make", "-s"], cwd=repo_root, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(targets)


@pytest.mark.parametrize("target", ["test-adapters", "test-tf", "bench-peers"])
def test_what_make_announces_is_printed_not_written(repo_root, tmp_path, target):
    """A requirement such as xares>=0.1.3 between the wrong quotes is a redirection to a file."""
    steps = subprocess.run(["make", "-n", target], cwd=repo_root, capture_output=True, text=True, check=True)
    announced = [line for line in steps.stdout.splitlines() if line.startswith("echo")]
    assert announced
    for line in announced:
        subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["make help", "make demo", "make test"])
def test_readme_names_the_first_things_to_type(repo_root, target):
    assert target in (repo_root / "README.md").read_text()


def test_links_in_the_documents_lead_to_tracked_files(build_script, repo_root):
    """A file that lies here but was never added to git is missing from every clone."""
    import re

    files = build_script.tracked_files(new=False)
    there = {*files, *(folder for path in files for folder in path.parents)}
    broken = set()
    for path in files:
        if path.suffix == ".md":
            text = (repo_root / path).read_text()
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
                if "://" not in link and Path(os.path.normpath(path.parent / link)) not in there:
                    broken.add(f"{path}: {link}")
    assert not broken


def test_continuous_integration_calls_make_test(repo_root):
    run = repo_root / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert "make test" in run.read_text()


def test_makefile_refuses_an_old_python_in_a_sentence(repo_root, tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((repo_root / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    command = ["make", "-s", "install", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "hear-m2d needs Python 3.11 or newer" in done.stderr
    assert "Python 3.8.1" in done.stderr
