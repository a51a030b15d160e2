"""Nothing imports a part by its folder's name, and imports between the parts run one way."""

import ast

import pytest

FOLDERS = {"pretrain", "evaluation", "tests", "benchmarks", "demo"}


def imported_names(source: str) -> set[str]:
    """Every module that a source text imports, also by `import_module("…")`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.level == 0 else {"."}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            )
            if function in {"import_module", "__import__", "importorskip"}:
                names.add(str(node.args[0].value))
    return names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pretrain", "pretrain"),
        ("def f():\n    from evaluation import cli", "evaluation.cli"),
        ("import importlib\nimportlib.import_module('pretrain.m2d')", "pretrain.m2d"),
        ("from . import model", "."),
    ],
)
def test_every_kind_of_import_is_seen(source, name):
    assert name in imported_names(source)


def test_no_file_imports_a_part_by_its_folder(python_files, repo_root):
    wrong = {
        f"{path}: {name}"
        for path in python_files
        for name in imported_names((repo_root / path).read_text())
        if name.split(".")[0] in FOLDERS or name == "."
    }
    assert not wrong, (
        "import the installed names instead (hear_m2d.pretrain, hear_m2d.evaluation), absolutely"
    )


def test_imports_between_the_parts_run_one_way(python_files, repo_root):
    closed = {
        "hear_m2d": ("hear_m2d.pretrain", "hear_m2d.evaluation"),
        "evaluation": ("hear_m2d.pretrain",),
        "pretrain": ("hear_m2d.evaluation",),
    }
    wrong = {
        f"{path}: {name}"
        for path in python_files
        for name in imported_names((repo_root / path).read_text())
        if name.startswith(closed.get(path.parts[0], ()))
        and not (path.parts[0] == "pretrain" and name.startswith("hear_m2d.evaluation.linear"))  # probes
        and not (
            path.parts[:2] == ("evaluation", "finetune") and name.startswith("hear_m2d.pretrain.training")
        )
    }
    assert not wrong


def test_core_imports_neither_the_parts_nor_what_only_extras_bring(python_files, repo_root):
    extras = {
        "torchaudio",
        "accelerate",
        "pyarrow",
        "tensorboard",
        "matplotlib",
        "sklearn",
        "scipy",
        "pandas",
    }
    asked_for = {("parquet.py", "pyarrow")}  # imported by nothing but `embed` to Parquet
    wrong = {
        f"{path}: {name}"
        for path in python_files
        if path.parts[0] == "hear_m2d"
        for name in imported_names((repo_root / path).read_text())
        if name.split(".")[0] in extras and (path.name, name.split(".")[0]) not in asked_for
    }
    assert not wrong
