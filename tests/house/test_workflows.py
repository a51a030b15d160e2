"""The workflows call make targets, and nothing else of their own."""

import re

import pytest
import yaml


@pytest.fixture
def workflows(repo_root):
    return {
        path.name: yaml.safe_load(path.read_text())
        for path in (repo_root / ".github/workflows").glob("*.yml")
    }


def test_there_is_a_workflow_for_tests_newest_dependencies_docs_and_release(workflows):
    assert set(workflows) == {"tests.yml", "newest.yml", "docs.yml", "release.yml"}


def test_every_command_of_a_workflow_is_a_make_target_that_exists(workflows, repo_root):
    targets = set(re.findall(r"^([a-z-]+):", (repo_root / "Makefile").read_text(), re.MULTILINE))
    commands = [
        step["run"]
        for workflow in workflows.values()
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert commands
    assert not {command for command in commands if command.removeprefix("make ") not in targets}


def test_the_release_needs_no_stored_token(workflows, repo_root):
    publish = workflows["release.yml"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in (repo_root / ".github/workflows/release.yml").read_text()
