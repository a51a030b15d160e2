"""An editable install is what we develop with."""

import re
from pathlib import Path


def test_make_installs_the_checkout_editable(repo_root):
    assert re.search(r"pip install .*--editable", (repo_root / "Makefile").read_text())


def test_tests_run_against_the_editable_install(repo_root):
    import hear_m2d.evaluation
    import hear_m2d.pretrain

    assert Path(hear_m2d.pretrain.__file__) == repo_root / "pretrain" / "__init__.py"
    assert Path(hear_m2d.evaluation.__file__) == repo_root / "evaluation" / "__init__.py"
