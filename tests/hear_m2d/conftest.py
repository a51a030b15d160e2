"""What the tests of the core share: checkpoints of narrow random models, and a server of files."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.embed.embedder import ModelSpec
from hear_m2d.model.hear_model import HearModel


@pytest.fixture
def checkpoint_path(make_model: Callable[..., HearModel], tmp_path: Path) -> Path:
    """A checkpoint of a narrow 16x16 model, freshly written."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, make_model(training={"recipe": "tiny_m2d", "steps": 3}, licence="Apache-2.0"))
    return path


class Web:
    """A web server on this machine: `web.pages[path] = bytes`, or a function that gets the handler."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.pages: dict[str, bytes | Callable] = {}
        self.requests: list[str] = []
        self.go_on = threading.Event()  # what `half_then_wait` waits for

    def half_then_wait(self, data: bytes) -> Callable:
        """A page that sends half its bytes, and the rest once `web.go_on` is set."""

        def answer(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            self.go_on.wait(60)
            with contextlib.suppress(OSError):  # the other side may have been killed
                handler.wfile.write(data[len(data) // 2 :])

        return answer


@pytest.fixture
def serve() -> Iterator[Callable[[HTTPServer], HTTPServer]]:
    """`serve(server)` runs an HTTP server in a thread until the test ends."""
    running = []

    def start(server: HTTPServer) -> HTTPServer:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def web(serve: Callable[[HTTPServer], HTTPServer]) -> Iterator[Web]:
    """A web server with `pages`, which records the path of each request in `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.requests.append(self.path)
            page = web.pages.get(self.path)
            if callable(page):
                page(self)
            elif page is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(serve(server).server_address[1])
    yield web
    web.go_on.set()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads, named by HEAR_M2D_CACHE."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEAR_M2D_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A hub on this machine, in a process of its own.

    `hub.python(script, *arguments, **environment)` runs Python with that hub in the real one's place;
    `hub.requests()` is what it was asked; `hub.stop()` takes it off the network.
    """
    folder = tmp_path / "hub"
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()

    def python(script, *arguments, **environment):
        ours = {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HEAR_M2D_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True, text=True, check=False, cwd=tmp_path, env={**kept, **ours, **environment},
        )  # fmt: skip

    def requests():
        log = folder / "requests.log"
        return log.read_text().splitlines() if log.exists() else []

    def stop():
        process.terminate()
        process.wait()

    yield SimpleNamespace(python=python, requests=requests, stop=stop, address=address, folder=folder)
    stop()
    process.stdout.close()


@pytest.fixture
def pq() -> ModuleType:
    """`pyarrow.parquet`; the test is skipped if pyarrow is not installed."""
    return pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Ten clips: formats, rates, channels, lengths below and above a window; and three that are no sound."""
    folder = tmp_path / "sounds"
    generator = np.random.default_rng(0)
    for index in range(10):
        rate, channels = [16000, 22050, 8000][index % 3], [1, 2, 4][index % 3]
        wave = 0.1 * generator.standard_normal((int(rate * (0.02 + 0.3 * index)), channels))
        path = folder / f"{'ab'[index % 2]}/{index}.{['wav', 'flac', 'ogg'][index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate)
    soundfile.write(folder / "a/0.flac", 0.1 * generator.standard_normal(16000), 16000)  # beside a/0.wav
    (folder / "a/bad.wav").write_bytes(b"no sound")
    (folder / "b/empty.mp3").touch()
    whole = (folder / "a/6.wav").read_bytes()
    (folder / "b/cut.wav").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def spec(checkpoint_path: Path) -> ModelSpec:
    """A narrow model that embeds both ways, on the CPU."""
    return ModelSpec(str(checkpoint_path), what="both", device="cpu")


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The files of a folder but its lock and list of clips: ``contents(folder)``, bytes by relative name."""

    def read(folder):
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in (".lock", ".written.jsonl")
        }

    return read
