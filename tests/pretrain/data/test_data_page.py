"""The program of docs/data.md, run as it stands."""

import re

import numpy as np
import soundfile


def test_the_program_of_the_page_runs(repo_root, tmp_path, monkeypatch, capsys):
    page = (repo_root / "docs" / "data.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "sounds").mkdir()
    for index in range(3):
        wave = 0.1 * np.random.default_rng(index).standard_normal(16000)
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", wave, 16000)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert capsys.readouterr().out.startswith("3 clips, 0.00 hours")
    assert names["item"]["x"].shape == (1, 80, 208)
