"""What the tests of the archives share: a server that misbehaves on request, and generated archives."""

import http.server
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Server:
    """A real HTTP server on this machine; `script` says how it answers the next requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.script: list[str] = []
        """One entry per request: drop, long, short, whole, damaged, 429, 503, date, 403; then it behaves."""
        self.requests: list[tuple[str, str | None]] = []
        """(path, Range header) of each request."""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        ranges = handler.headers.get("Range")
        self.requests.append((handler.path, ranges))
        mood = self.script.pop(0) if self.script else "good"
        content = self.files.get(handler.path)
        handler.close_connection = True
        if content is None or mood.isdecimal() or mood == "date":
            status = 404 if content is None else 503 if mood == "date" else int(mood)
            handler.send_response(status)
            if mood == "429":
                handler.send_header("Retry-After", "1")
            if mood == "date":
                handler.send_header("Retry-After", "Fri, 31 Dec 2100 23:59:59 GMT")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if mood == "damaged":
            content = content[: len(content) // 2] + bytes(8) + content[len(content) // 2 + 8 :]
        total, first = len(content), 0
        if ranges and mood != "whole":
            first = int(re.fullmatch(r"bytes=(\d+)-", ranges)[1])  # type: ignore[index]
            if first >= total:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{total}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            handler.send_response(200)
        body = content[first:]
        promised = {"long": len(body) + 500, "short": len(body) // 2}.get(mood, len(body))
        handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if mood == "drop" else body[:promised])


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are repeated after milliseconds."""
    monkeypatch.setattr("hear_m2d.evaluation.archives.transfer.FIRST_WAIT_S", 0.001)


@pytest.fixture
def pack() -> Callable[..., bytes]:
    """Return a function that packs a task folder as HEAR does, below a prefix."""

    def pack(task: Path, *, prefix: str = "hear-2021.0.6/tasks", rate: int | None = None) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for path in sorted(task.rglob("*")):
                name = path.relative_to(task)
                if rate is not None and name.parts[0].isdecimal():
                    name = Path(str(rate), *name.parts[1:])
                tar.add(path, f"{prefix}/{task.name}/{name}", recursive=False)
        return buffer.getvalue()

    return pack


@pytest.fixture
def small_task(tmp_path: Path, tiny_tasks: Any) -> Path:
    """A task of twelve clips at 16 kHz under the name of one of HEAR's: gunshot_triangulation."""
    made = tiny_tasks.scene_multiclass(tmp_path / "made", sizes=(4, 4, 4))
    task: Path = made.rename(made.parent / "gunshot_triangulation-v1.0-full")
    return task
