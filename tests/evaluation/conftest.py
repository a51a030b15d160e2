"""What the tests of this part share: generated tasks, a tiny HEAR module, Python in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="session")
def tiny_tasks() -> ModuleType:
    """The generators of tiny_tasks.py."""
    spec = importlib.util.spec_from_file_location("tiny_tasks", HERE / "tiny_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def tiny_module_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny_hear_module` can be imported, here and in child processes; one thread, no GPU."""
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *([known] if known else [])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs code in a new process, where named packages cannot be imported."""

    def run(code: str, *, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BLOCK.format(blocked=set(blocked)) + code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=300,
        )

    return run


@pytest.fixture
def our_checkpoint(tmp_path: Path) -> Path:
    """A small untrained network of ours, as a file."""
    import torch

    from hear_m2d.checkpoint.format import save_checkpoint
    from hear_m2d.model.config import ModelConfig
    from hear_m2d.model.encoder import EncoderConfig
    from hear_m2d.model.hear_model import HearModel

    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), patch_size=(16, 16), width=48, depth=2, heads=3)
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, HearModel(ModelConfig(encoder=encoder)))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
