"""Sphinx: the Markdown pages of this folder, and the reference from the docstrings. `make docs` builds it."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

project = "hear-m2d"
author = copyright = "The hear-m2d developers"
release = version = installed_version("hear-m2d")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"hear-m2d {release}"
exclude_patterns = ["build"]

# Headings get anchors, so that `page.md#section` works here as it does in the repository's browser.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
# Packages of extras that the reference does not need to be built.
autodoc_mock_imports = ["mteb", "xares", "ray", "transformers"]

# Pages at the top of the repository have a page of their own here; links between both places are rewritten.
ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")


def _take_root_pages(app: object, name: str, source: list[str]) -> None:
    """Fill `project_<name>` with the page at the top of the repository, and mend the links."""
    for page in ROOT_PAGES:
        if name == f"project_{page.lower()}":
            text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
            text = re.sub(r"\[(LICENSE|CITATION\.cff)\]\(\1\)", r"\1", text)
            source[0] = text.replace("](docs/", "](")
    for page in ROOT_PAGES:
        source[0] = re.sub(rf"\]\((\.\./)?{page}\.md", f"](project_{page.lower()}.md", source[0])


def setup(app):  # noqa: ANN001, ANN201, D103  (Sphinx's own hook)
    app.connect("source-read", _take_root_pages)
