"""The order of the folders: each imports only from those before it, and no two modules import each other."""

import ast
import graphlib

import pytest

# A row may import from the rows above it, and from itself; see CONTRIBUTING.md. "" is hear_m2d/__init__.py.
ORDER = (
    ("utils",),
    ("audio",),
    ("model",),
    ("checkpoint",),
    ("",),
    ("embed", "export", "evaluation.hear", "evaluation.archives", "evaluation.report", "evaluation.adapters"),
    ("evaluation.baselines", "evaluation.linear"),
    ("pretrain", "pretrain.data", "pretrain.data.sources", "pretrain.objectives", "pretrain.training"),
    ("pretrain.visualize", "evaluation.finetune"),
    ("cli", "__main__", "pretrain.cli", "evaluation", "evaluation.cli"),
)
LEVELS = {folder: level for level, row in enumerate(ORDER) for folder in row}
MOST_FILES = 12


@pytest.fixture(scope="module")
def imports(python_files, repo_root):
    """The modules that each module imports, within functions too."""
    trees = {}
    for path in python_files:
        if path.parts[0] in ("hear_m2d", "pretrain", "evaluation"):
            parts = path.with_suffix("").parts
            name = ".".join(parts if parts[0] == "hear_m2d" else ("hear_m2d", *parts))
            trees[name.removesuffix(".__init__")] = ast.parse((repo_root / path).read_text())
    found = {}
    for name, tree in trees.items():
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        plain = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        either = {module if module in trees else module.rpartition(".")[0] for module in named | plain}
        found[name] = (either & set(trees)) - {name}
    return found


def folder_of(module):
    """Return the row's name for a module: that of its folder, or its own where it has a row."""
    name = module.removeprefix("hear_m2d").removeprefix(".")
    while name not in LEVELS and name:
        name = name.rpartition(".")[0]
    return name


def test_each_folder_imports_only_from_those_before_it(imports):
    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if LEVELS[folder_of(other)]
        > (len(ORDER) if module.endswith(("cli", "__main__")) else LEVELS[folder_of(module)])
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle(imports):
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


def test_no_folder_holds_more_files_than_a_reader_can_survey(python_files):
    counts = {}
    for path in python_files:
        if path.parts[0] in ("hear_m2d", "pretrain", "evaluation") and path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}
