"""What every test may ask for: folders of reference numbers and real audio, and what is left out unasked.

pytest runs in `importlib` mode: test files of one name may lie in several folders, and no test file can
be imported by another. What tests share is therefore a fixture: here for all parts, in
`tests/<part>/conftest.py` for one. A helper function is shared by a fixture that returns it.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

LEFT_OUT = pytest.StashKey[int]()
LONG = ("slow", "full", "pages")  # markers of what runs only when asked for


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (`make test-slow`)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long tests, unless `--slow`, an own `-m`, or a test's name asks for them."""
    named = any("::" in argument for argument in config.args)
    if config.getoption("-m") or named:
        return
    left_out = [marker for marker in LONG if not (marker == "slow" and config.getoption("--slow"))]
    long = [item for item in items if any(item.get_closest_marker(marker) for marker in left_out)]
    if long:
        config.hook.pytest_deselected(items=long)
        if hasattr(config, "workeroutput"):  # one of several processes that test: it tells the main one
            config.workeroutput["left out"] = len(long)
        items[:] = [item for item in items if item not in long]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take from each process that tests how many tests it left out: all leave out the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran and how many were skipped, by reason."""
    counts = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "skipped")}
    left_out = len(terminalreporter.stats.get("deselected", []))
    left_out = terminalreporter.config.stash.get(LEFT_OUT, left_out)
    terminalreporter.section("how many")
    terminalreporter.line(
        f"{counts['passed'] + counts['failed']} tests ran, {counts['skipped']} were skipped, "
        f"{left_out} were left out (slow, or not asked for)"
    )
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, number in reasons.most_common():
        terminalreporter.line(f"  {number} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A narrow model with every weight random: ``make_model(patch=…, rate=…, frames=…, options={…})``."""

    import torch

    from hear_m2d.model.config import ModelConfig, Options
    from hear_m2d.model.encoder import EncoderConfig
    from hear_m2d.model.frontend import FrontendConfig
    from hear_m2d.model.hear_model import HearModel

    def make(
        patch=(16, 16), rate=16000, frames=64, width=64, depth=2, heads=2, seed=0, options=None,
        class_token=True, **config,
    ):  # fmt: skip
        encoder = EncoderConfig(
            input_size=(80, frames), patch_size=patch, width=width, depth=depth, heads=heads,
            class_token=class_token,
        )  # fmt: skip
        whole = ModelConfig(encoder=encoder, frontend=FrontendConfig.for_rate(rate), **config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = HearModel(whole, Options.parse(options or {}))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:  # norms and biases, too regular as initialized
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Any]:
    """White noise, (batch, samples): ``noise(batch, samples, scale=…, seed=…)``."""

    import torch

    def make(batch, samples, scale=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return scale * (2 * torch.rand(batch, samples, generator=generator) - 1)

    return make


@contextmanager
def _ray_cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    store = 80 << 20  # bytes
    head = {"num_cpus": 0, "object_store_memory": store, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=store)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def ray_cluster() -> Callable[[], AbstractContextManager[Any]]:
    """Start a Ray cluster: a head without processors, two nodes with one each, and this process connected."""
    return _ray_cluster


@pytest.fixture(scope="module")
def cluster(ray_cluster: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
    """The same cluster for all tests of a module."""
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `hear-m2d` in this process: ``run("info", path)`` → (exit code, output, errors)."""
    from hear_m2d.cli import main

    monkeypatch.delenv("HEAR_M2D_TRACEBACK", raising=False)

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return command


@pytest.fixture
def refuse_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``refuse_folder(name)``: folders of that name cannot be listed, also not by root."""

    def refuse(name):
        scan = os.scandir

        def listed(path):
            if str(path).endswith(name):  # a number where a tree is removed
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", listed)

    return refuse


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set: the folder of {what}")
    path = Path(value).expanduser().resolve()
    if not path.is_dir():
        pytest.fail(f"{variable} is set to {value}, which is no folder. Unset it to skip these tests.")
    return path


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The reference numbers of the published code: the folder that HEAR_M2D_FIXTURES names."""
    return _folder("HEAR_M2D_FIXTURES", "reference numbers")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real audio and tasks: the folder that HEAR_M2D_DATA names."""
    return _folder("HEAR_M2D_DATA", "real audio and tasks")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The top of the checkout."""
    return Path(__file__).resolve().parent.parent
