"""`benchmarks/gpu_day.py` runs on a CPU with toy sizes, so that its first hour on a GPU gives results."""

import json
import os
import subprocess
import sys

import pytest


def day(repo_root, tmp_path, *words):
    command = [sys.executable, repo_root / "benchmarks" / "gpu_day.py", "--tiny", "--out", tmp_path / "out"]
    command += ["--work", tmp_path / "work", "--patience", 20, "--budget", 3000, *words]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HEAR_M2D_TINY_GPU": "1"},
    )


def test_sections_run_on_a_cpu_and_are_not_repeated(repo_root, tmp_path):
    done = day(repo_root, tmp_path, "--only", "facts,attention")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert done.returncode == 0, done.stdout
    assert {name: results["end"] for name, results in report.items()} == {"facts": "ok", "attention": "ok"}
    assert report["facts"]["check the rate that a run measures at its start is within 10 %"] is True
    assert "facts           ok" in done.stdout


@pytest.mark.slow
def test_the_whole_day_passes_on_a_cpu(repo_root, tmp_path):
    done = day(repo_root, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report) == 13
    begun = (tmp_path / "out" / "run.log").stat().st_mtime_ns
    again = day(repo_root, tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "out" / "run.log").stat().st_mtime_ns == begun
