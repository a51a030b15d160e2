import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hear_m2d.evaluation.hear.compat import (
    EMBEDDINGS,
    PREDICTIONS,
    REPAIRS,
    VALIDATOR,
    repaired,
    run_tool,
)
from hear_m2d.evaluation.hear.requirements import (
    INSTALL_EXTRA,
    INSTALL_HEAREVAL,
    INSTALL_HEARVALIDATOR,
    check_installed,
)
from hear_m2d.utils.errors import InputError

pytestmark = pytest.mark.harness
Run = Callable[..., subprocess.CompletedProcess[str]]

# A GPU that only torch sees, with NVML bindings of today: the name is text.
FAKE_GPU = """
import types, sys, torch
nvml = types.ModuleType("pynvml")
nvml.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("pynvml", None)
nvml.NVMLError = type("NVMLError", (Exception,), {})
nvml.nvmlInit = lambda: None
nvml.nvmlDeviceGetHandleByIndex = lambda index: index
nvml.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=0)
nvml.nvmlDeviceGetName = lambda handle: "NVML name"
sys.modules["pynvml"] = nvml
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda index=0: "torch name"
"""


def start(tool: str, *args: str, without: tuple[str, ...] = ()) -> str:
    imported = "from hear_m2d.evaluation.hear.compat import run_tool"
    return f"{imported}; run_tool({tool!r}, {args!r}, without={without!r})"


def test_n2_a_prediction_imports_neither_torchvision_nor_transformers(run_python: Run) -> None:
    code = """
import sys
from hear_m2d.evaluation.hear.compat import PREDICTIONS, repaired
from lightning_utilities.core.imports import RequirementCache
print(bool(RequirementCache("torchvision")), bool(RequirementCache("transformers")))
with repaired(PREDICTIONS):
    import pytorch_lightning
print({"torchvision", "transformers"} & set(sys.modules))
"""
    done = run_python(code)
    assert done.stdout == "True True\nset()\n", done.stderr


@pytest.mark.parametrize(
    ("tool", "args"),
    [(VALIDATOR, ("tiny_hear_module", "-d", "cpu")), (EMBEDDINGS, ("--help",))],
)
def test_r1_a_tool_runs_where_tensorflow_is_absent(run_python: Run, tool: str, args: tuple[str, ...]) -> None:
    done = run_python(start(tool, *args), blocked=("tensorflow",))
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout or "Usage" in done.stdout
    without = run_python(start(tool, *args, without=("R1",)), blocked=("tensorflow",))
    assert without.returncode == 1
    assert "ModuleNotFoundError: No module named 'tensorflow'" in without.stderr


def test_r1_the_stand_in_is_found_by_find_spec_and_leaves_nothing_behind() -> None:
    with repaired(VALIDATOR):
        importlib.util.find_spec("tensorflow")
        import hearvalidator.validate

        assert hearvalidator.validate.tf is sys.modules["tensorflow"]
    assert "tensorflow" not in sys.modules
    assert "hearvalidator.validate" not in sys.modules, "it would keep the stand-in"


def test_r2_the_kits_own_checkpoints_load(tmp_path: Path) -> None:
    named = {
        "embedding_norm": torch.nn.Identity,
        "hidden_norm": torch.nn.BatchNorm1d,
        "optim": torch.optim.Adam,
        "initialization": [torch.nn.init.xavier_uniform_, torch.nn.init.xavier_normal_],
    }
    torch.save(named, tmp_path / "kit.ckpt")
    with repaired(PREDICTIONS):
        assert torch.load(tmp_path / "kit.ckpt") == named
    with repaired(PREDICTIONS, without=["R2"]), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "kit.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "kit.ckpt")


def test_r2_opens_no_other_name(tmp_path: Path) -> None:
    torch.save({"optim": torch.optim.SGD}, tmp_path / "other.ckpt")
    with repaired(PREDICTIONS), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "other.ckpt")


def test_r3_setting_the_epoch_takes_effect() -> None:
    from pytorch_lightning.loops.fit_loop import FitLoop

    def after_setting() -> int:
        loop = FitLoop(max_epochs=5)
        loop.current_epoch = 3
        return int(loop.epoch_progress.current.completed)

    with repaired(PREDICTIONS):
        assert after_setting() == 3
    with repaired(PREDICTIONS, without=["R3"]):
        assert after_setting() == 0
    assert after_setting() == 0


def test_r3_an_event_task_is_tested_with_its_best_epoch(run_python: Run, tiny_tasks, tmp_path: Path) -> None:
    tiny_tasks.events(tmp_path / "tasks", seconds=3.0)
    run_tool(
        EMBEDDINGS,
        ["tiny_hear_module", "--tasks-dir", f"{tmp_path}/tasks", "--embeddings-dir", f"{tmp_path}/e"],
    )
    folder = str(tmp_path / "e/tiny_hear_module/bells-v1.0-full")
    few = (folder, "--grid", "faster", "--grid-points", "1")
    without = run_python(start(PREDICTIONS, *few, without=("R3",)))
    assert without.returncode == 1
    assert "KeyError: " in without.stderr
    assert "epoch_best_postprocessing" in without.stderr
    done = run_python(start(PREDICTIONS, *few))
    assert done.returncode == 0, done.stderr


def test_r5_the_gpus_name_may_be_text(run_python: Run) -> None:
    code = (
        FAKE_GPU
        + """
from hear_m2d.evaluation.hear.compat import repaired, EMBEDDINGS
with repaired(EMBEDDINGS, without={without!r}):
    import heareval.gpu_max_mem
    print(heareval.gpu_max_mem.device_name())
"""
    )
    done = run_python(code.replace("{without!r}", "()"))
    assert done.stdout == "torch name\n", done.stderr
    without = run_python(code.replace("{without!r}", "('R5',)"))
    assert "AttributeError: 'str' object has no attribute 'decode'" in without.stderr


def test_r6_a_gpu_that_tensorflow_does_not_see_is_accepted(run_python: Run) -> None:
    done = run_python(FAKE_GPU + start(EMBEDDINGS, "--help"))
    assert done.returncode == 0, done.stderr
    without = run_python(FAKE_GPU + start(EMBEDDINGS, "--help", without=("R6",)))
    assert "ValueError: GPUs not available in tensorflow, but found by pytorch" in without.stderr


def test_r4_a_gpu_without_nvml_can_be_used(run_python: Run) -> None:
    code = (
        FAKE_GPU
        + """
def nvmlInit(): raise nvml.NVMLError("driver not loaded")
nvml.nvmlInit = nvmlInit
from hear_m2d.evaluation.hear.compat import repaired, EMBEDDINGS
with repaired(EMBEDDINGS, without={without!r}):
    import heareval.gpu_max_mem
    print(heareval.gpu_max_mem.measure(), heareval.gpu_max_mem.device_name())
"""
    )
    done = run_python(code.replace("{without!r}", "()"))
    assert done.stdout == "None torch name\n", done.stderr
    without = run_python(code.replace("{without!r}", "('R4',)"))
    assert "NVMLError: driver not loaded" in without.stderr


def test_r8_cublas_may_compute_deterministically_from_the_first_embedding_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with repaired(EMBEDDINGS):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with repaired(EMBEDDINGS, without=["R8"]):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with repaired(EMBEDDINGS):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's own"


def test_r9_the_deterministic_mode_is_put_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        with repaired(PREDICTIONS):
            torch.use_deterministic_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled() == before
        with repaired(PREDICTIONS, without=["R9"]):
            torch.use_deterministic_algorithms(not before)
        assert torch.are_deterministic_algorithms_enabled() != before
    finally:
        torch.use_deterministic_algorithms(before)


def test_r7_works_with_a_setuptools_that_dropped_pkg_resources(run_python: Run) -> None:
    code = """
from hear_m2d.evaluation.hear.compat import repaired, PREDICTIONS
with repaired(PREDICTIONS, without={without!r}):
    import heareval.score, pytorch_lightning
assert "pkg_resources" not in sys.modules
"""
    done = run_python(code.replace("{without!r}", "()"), blocked=("pkg_resources",))
    assert done.returncode == 0, done.stderr
    without = run_python(code.replace("{without!r}", "('R7',)"), blocked=("pkg_resources",))
    assert "ModuleNotFoundError: No module named 'pkg_resources'" in without.stderr


def softmax_warnings() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        with repaired(PREDICTIONS):
            torch.nn.Softmax()(torch.zeros(1, 2))
            warnings.warn("pkg_resources is deprecated as an API.", stacklevel=1)
    with warnings.catch_warnings(record=True) as left:
        warnings.resetwarnings()
        with repaired(PREDICTIONS, without=["N1"]):
            torch.nn.Softmax()(torch.zeros(1, 2))
            warnings.warn("pkg_resources is deprecated as an API.", stacklevel=1)
    assert len(left) == 2
    return [str(warning.message) for warning in caught]


def test_n1_warnings_that_only_show_the_packages_age_are_hidden() -> None:
    assert softmax_warnings() == []


@pytest.mark.parametrize("tool", [VALIDATOR, EMBEDDINGS, PREDICTIONS])
def test_every_repair_is_undone(tool: str) -> None:
    from pytorch_lightning.loops.fit_loop import FitLoop

    def state() -> list[object]:
        names = set(torch.serialization.get_safe_globals())  # its order changes with each call
        lightning, tensorflow = dict(vars(FitLoop)), sys.modules.get("tensorflow")
        return [list(warnings.filters), names, lightning, tensorflow, list(sys.argv)]

    before = state()
    with pytest.raises(KeyError), repaired(tool):
        raise KeyError
    assert state() == before


def test_importing_the_package_repairs_nothing(run_python: Run) -> None:
    done = run_python(
        "import torch, hear_m2d, hear_m2d.evaluation.hear.compat, hear_m2d.evaluation.cli\n"
        "assert not {'tensorflow', 'pkg_resources', 'pytorch_lightning', 'heareval'} & set(sys.modules)\n"
        "assert torch.optim.Adam not in torch.serialization.get_safe_globals()\n",
    )
    assert done.returncode == 0, done.stderr


def test_names_of_tools_and_repairs_are_checked() -> None:
    with (
        pytest.raises(InputError, match=r"Did you mean heareval\.embeddings\.runner"),
        repaired("heareval.embedding"),
    ):
        pass
    with pytest.raises(InputError, match="unknown repair 'R99'"), repaired(VALIDATOR, without=["R99"]):
        pass
    assert len({repair.name for repair in REPAIRS}) == len(REPAIRS)


@pytest.mark.parametrize(
    ("tool", "package", "installed", "install"),
    [
        (VALIDATOR, "hearvalidator", None, INSTALL_HEARVALIDATOR),
        (VALIDATOR, "hearvalidator", "2021.0.2", INSTALL_HEARVALIDATOR),
        (EMBEDDINGS, "heareval", None, INSTALL_HEAREVAL),
        (PREDICTIONS, "heareval", "2021.0.1", INSTALL_HEAREVAL),
        (PREDICTIONS, "sed_eval", None, INSTALL_EXTRA),
        (PREDICTIONS, "pytorch-lightning", "2.6.6", INSTALL_EXTRA),
        (PREDICTIONS, "pytorch-lightning", "1.7.7", INSTALL_EXTRA),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_named_with_the_line_to_type(
    tool: str, package: str, installed: str | None, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hear_m2d.evaluation.hear import requirements

    real = requirements.version

    def version(name: str) -> str:
        if name != package:
            return real(name)
        if installed is None:
            raise requirements.PackageNotFoundError(name)
        return installed

    check_installed(tool)
    monkeypatch.setattr(requirements, "version", version)
    with pytest.raises(ImportError, match=rf"{package}\S+ \({installed or 'not installed'}\)") as error:
        check_installed(tool)
    assert str(error.value).removesuffix(" (in a checkout: make install)").endswith(f"Type: {install}")


def test_setuptools_without_pkg_resources_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hear_m2d.evaluation.hear import requirements

    real = requirements.version
    monkeypatch.setattr(requirements, "version", lambda name: "84" if name == "setuptools" else real(name))
    check_installed(PREDICTIONS)


def test_the_command_line_starts_a_tool_or_says_why_not(tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hear_m2d.evaluation.hear.compat", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert run("heareval.prediction.runner").returncode == 2
    assert (done := run()).returncode == 2
    assert done.stderr.startswith("error: usage: ")
    done = run(PREDICTIONS, "--help")
    assert done.returncode == 0, done.stderr
    assert "--grid-points" in done.stdout
