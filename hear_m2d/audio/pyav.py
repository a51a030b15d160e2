"""Decode with PyAV in a separate process: if a decoder crashes or hangs, only one file is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from hear_m2d.audio.formats import Format
from hear_m2d.audio.sndfile import check_rate
from hear_m2d.audio.types import DecodeError, Piece

INSTALL = "pip install 'hear-m2d[decoders]'"
LIMIT_S = 30.0  # seconds for a file without sound
LIMIT_S_PER_HOUR = 60.0  # additional seconds for each hour of sound
_WORKER = Path(__file__).with_name("pyav_worker.py")
_idle: dict[int, list[_Worker]] = {}  # by process id: a forked process must not use those of its parent


def decode(source: str | os.PathLike[str] | bytes, kind: Format) -> tuple[list[Piece], int]:
    """Decode a file; a new piece begins where the rate or the number of channels changes.

    Also return where the last packet with sound ends, in bytes.

    Args:
        source: Its path, or its bytes.
        kind: Its format.

    Raises:
        DecodeError: It cannot be decoded completely, its decoder died twice or took too long, or PyAV is not
            installed.
    """
    if importlib.util.find_spec("av") is None:
        raise DecodeError(
            "not supported", f"libsndfile cannot read all of this {kind.name}; PyAV may. Type: {INSTALL}"
        )
    request: dict[str, Any] = {"demuxer": kind.demuxer, "states_length": kind.states_length}
    if isinstance(source, bytes):
        request["size"] = len(source)
    else:
        request["path"] = os.path.abspath(source)  # noqa: PTH100
    for attempt in (1, 2):
        idle = _idle.setdefault(os.getpid(), [])
        worker = idle.pop() if idle and attempt == 1 else _Worker()
        try:
            pieces, end = worker.decode(request, source if isinstance(source, bytes) else b"")
        except (EOFError, OSError):
            worker.stop()
            if worker.timed_out:
                raise DecodeError("too slow", "its decoder was ended after its time limit") from None
            continue
        except DecodeError:
            idle.append(worker)
            raise
        except BaseException:
            worker.stop()
            raise
        idle.append(worker)
        if not any(len(piece.samples) for piece in pieces):
            raise DecodeError("empty", "it holds no samples")
        return pieces, end
    raise DecodeError("crash", "the process that decodes it died twice")


class _Worker:
    """A process that decodes one file after another."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )
        self.timed_out = False

    def decode(self, request: dict[str, Any], content: bytes) -> tuple[list[Piece], int]:
        """Send a request and return what is decoded."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise EOFError
        finished = threading.Event()
        self.deadline = time.monotonic() + LIMIT_S
        watchdog = threading.Thread(target=self._watch, args=(finished,), daemon=True)
        watchdog.start()
        try:
            stdin.write(json.dumps(request).encode() + b"\n" + content)
            stdin.flush()
            return self._receive(stdout)
        finally:
            finished.set()

    def _receive(self, stdout: IO[bytes]) -> tuple[list[Piece], int]:
        parts: list[tuple[int, int, list[bytes]]] = []
        while True:
            message = json.loads(stdout.readline() or _eof())
            if "rate" in message:
                check_rate(message["rate"])
                parts.append((message["rate"], message["channels"], []))
            elif "samples" in message:
                data = stdout.read(4 * message["samples"])
                if len(data) < 4 * message["samples"]:
                    raise EOFError
                parts[-1][2].append(data)
                self.deadline += LIMIT_S_PER_HOUR * message["samples"] / parts[-1][0] / 3600
            elif "error" in message:
                raise DecodeError(message["reason"], message["error"])
            else:
                pieces = [Piece(np.frombuffer(b"".join(data), np.float32), *kind) for *kind, data in parts]
                return pieces, message["end"]

    def _watch(self, finished: threading.Event) -> None:
        """Kill the process when its time limit is reached."""
        while not finished.wait(max(self.deadline - time.monotonic(), 0.01)):
            if time.monotonic() >= self.deadline:
                self.timed_out = True
                self.process.kill()
                return

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def _eof() -> bytes:
    raise EOFError
