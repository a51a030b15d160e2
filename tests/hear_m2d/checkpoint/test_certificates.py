"""Certificates of the environment hold for downloads: SSL_CERT_FILE (the hub), REQUESTS_CA_BUNDLE (https)."""

import os
import shutil
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
FETCH = "from hear_m2d.checkpoint.download import fetch; fetch('https://localhost:{port}/x.safetensors')"
HUB = "from hear_m2d.checkpoint.download import fetch_from_hub; fetch_from_hub('hf://owner/repo')"
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "HF_HUB_OFFLINE")


@pytest.fixture
def server(tmp_path, serve):
    """An https server whose certificate no one else knows, and the paths that it is asked for."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    certificate = tmp_path / "certificate.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    server = HTTPServer(("localhost", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return serve(server).server_port, str(certificate), asked


@pytest.mark.parametrize("code", [FETCH, HUB], ids=["url", "hub"])
def test_a_server_with_a_certificate_of_ones_own_is_reached(server, tmp_path, code):
    port, certificate, asked = server
    others = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    mine = {"NO_PROXY": "localhost", "no_proxy": "localhost", "HF_HOME": str(tmp_path),
            "HEAR_M2D_CACHE": str(tmp_path), "HF_ENDPOINT": f"https://localhost:{port}"}  # fmt: skip

    def errors(extra):
        command = [sys.executable, "-c", code.format(port=port)]
        done = subprocess.run(command, env=others | mine | extra, capture_output=True, text=True, timeout=60)
        return done.stderr

    if code is FETCH:
        assert "certificate verify failed" in errors({})
        assert not asked
    # huggingface_hub reads the first of them, before its version 1 the second, as other downloads do.
    errors({"SSL_CERT_FILE": certificate, "REQUESTS_CA_BUNDLE": certificate})
    assert asked
    assert any("x.safetensors" in path or "owner/repo" in path for path in asked)
