"""The proxy of the environment holds for downloads of checkpoints."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

FETCH = "from hear_m2d.checkpoint.download import fetch; fetch('https://example.invalid/x.safetensors')"
HUB = "from hear_m2d.checkpoint.download import fetch_from_hub; fetch_from_hub('hf://owner/repo')"


@pytest.fixture
def proxy(serve):
    """A proxy that refuses everything; it notes the addresses that it is asked for."""
    asked = []

    class Refuses(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *arguments):
            pass

    server = serve(HTTPServer(("127.0.0.1", 0), Refuses))
    return f"http://127.0.0.1:{server.server_port}", asked


@pytest.mark.parametrize(
    ("code", "host"), [(FETCH, "example.invalid:443"), (HUB, "huggingface.co:443")], ids=["url", "hub"]
)
def test_a_download_goes_through_the_proxy_of_the_environment(proxy, tmp_path, code, host):
    address, asked = proxy
    names = ("HTTP_PROXY", "HTTPS_PROXY")
    mine = dict.fromkeys([*names, *map(str.lower, names)], address) | {
        "NO_PROXY": "", "no_proxy": "", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)
    }  # fmt: skip
    others = {k: v for k, v in os.environ.items() if k not in ("HF_ENDPOINT", "HF_HUB_OFFLINE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=others | mine, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            if asked or process.poll() is not None:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
    assert asked, "the proxy was not asked"
    assert set(asked) == {host}
