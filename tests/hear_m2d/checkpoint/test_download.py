"""A URL to a file in the cache: whole or not there, checked, fetched once, by one process at a time."""

import hashlib
import logging
import subprocess
import sys

import pytest

from hear_m2d.checkpoint.download import cache_folder, cached_path, fetch

DATA = bytes(range(256)) * 4096
SUM = hashlib.sha256(DATA).hexdigest()
FETCH = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
from hear_m2d.checkpoint.download import fetch
fetch(*sys.argv[1:])
"""


@pytest.fixture
def start_fetch(cache):
    """Fetch in a process of its own; what it logs is its standard error."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", FETCH, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def read_until(stream, text):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


@pytest.mark.parametrize("sha256", [None, SUM])
def test_a_file_is_downloaded_once_and_then_needs_no_server(web, cache, sha256, caplog, capsys):
    web.pages["/weights/a.bin"] = DATA
    url = web.url + "/weights/a.bin"
    with caplog.at_level(logging.INFO, "hear_m2d"):
        path = fetch(url, sha256)
    assert path.read_bytes() == DATA
    assert f"downloading {url} to " in caplog.text
    del web.pages["/weights/a.bin"]
    assert fetch(url, sha256) == path
    assert web.requests == ["/weights/a.bin"]
    assert files(cache) == [path]
    assert capsys.readouterr() == ("", "")


def test_the_cache_keeps_the_names_that_say_the_sample_rate(cache):
    folder, name = "m2d_as_vit_base-80x608p16x16p32k-240413_enconly", "checkpoint-300.pth"
    path = cached_path(f"https://lab.example/a/{folder}/{name}?token=1")
    assert path.parts[-2:] == (folder, name)
    assert cache in path.parents


@pytest.mark.parametrize("page", ["", "/", "/../../etc/x", "/%2e%2e/%2e%2e/x", "/.ssh/y", "/" + "n" * 400])
def test_no_address_leaves_the_cache(cache, page):
    path = cached_path("https://lab.example" + page)
    assert cache in path.resolve().parents
    assert not [part for part in path.relative_to(cache).parts if part.startswith(".") or len(part) > 100]


def test_a_wrong_sum_is_an_error_that_names_both_and_keeps_nothing(web, cache):
    web.pages["/a.bin"] = DATA + b"!"
    found = hashlib.sha256(DATA + b"!").hexdigest()
    with pytest.raises(ValueError, match=rf"/a\.bin: .*{SUM}.*{found}.*Deleted download"):
        fetch(web.url + "/a.bin", SUM)
    assert not files(cache)


def test_a_file_damaged_in_the_cache_is_downloaded_again(web, cache):
    web.pages["/a.bin"] = DATA
    path = fetch(web.url + "/a.bin", SUM)
    path.write_bytes(DATA[:-1])
    assert fetch(web.url + "/a.bin", SUM).read_bytes() == DATA
    assert len(web.requests) == 2


def test_a_server_that_hangs_up_half_way_leaves_nothing(web, cache):
    def hang_up(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[: len(DATA) // 2])

    web.pages["/a.bin"] = hang_up
    with pytest.raises(ConnectionError, match=r"a\.bin .*Nothing was kept"):
        fetch(web.url + "/a.bin")
    assert not files(cache)
    web.pages["/a.bin"] = DATA
    assert fetch(web.url + "/a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, FileNotFoundError, "404 Not Found"),
        (410, FileNotFoundError, "410 Gone"),
        (403, PermissionError, "403 Forbidden"),
        (500, ConnectionError, "500 Internal Server Error"),
    ],
)
def test_a_refusal_is_a_sentence(web, cache, status, kind, words):
    web.pages["/a.bin"] = lambda handler: handler.send_error(status)
    with pytest.raises(kind, match=f"/a.bin: the server answered {words}"):
        fetch(web.url + "/a.bin")
    assert not files(cache)


def test_a_redirect_is_followed(web, cache):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "/b.bin")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.pages |= {"/a.bin": elsewhere, "/b.bin": DATA}
    assert fetch(web.url + "/a.bin", SUM).name == "a.bin"


def test_no_server_is_a_sentence_without_secrets(web, cache):
    port = web.url.rpartition(":")[2]
    url = f"https://me:secret@127.0.0.1:{port}/a.bin?token=hidden"  # the server speaks no https
    with pytest.raises(ConnectionError, match=r"could not download https://127\.0\.0\.1.*/a\.bin") as caught:
        fetch(url)
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_of_two_processes_one_downloads_and_the_other_waits_and_says_so(web, cache, start_fetch):
    web.pages["/a.bin"] = web.half_then_wait(DATA)
    url = web.url + "/a.bin"
    first = start_fetch(url, SUM)
    read_until(first.stderr, "downloading")
    second = start_fetch(url, SUM)
    read_until(second.stderr, f"another process is downloading {url}: waiting")
    web.go_on.set()
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err
    assert web.requests == ["/a.bin"]
    assert fetch(url, SUM).read_bytes() == DATA


def test_a_killed_download_leaves_nothing_that_looks_whole_and_the_next_one_cleans_up(
    web, cache, start_fetch
):
    web.pages["/a.bin"] = web.half_then_wait(DATA)
    url = web.url + "/a.bin"
    process = start_fetch(url)
    read_until(process.stderr, "downloading")
    process.kill()
    process.wait()
    assert not cached_path(url).exists()
    web.pages["/a.bin"] = DATA
    assert fetch(url).read_bytes() == DATA
    assert files(cache) == [cached_path(url)]


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(web, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEAR_M2D_CACHE", str(tmp_path / "file" / "cache"))
    web.pages["/a.bin"] = DATA
    with pytest.raises(
        OSError, match=r"cannot write to the cache .*file/cache: Not a directory.*HEAR_M2D_CACHE"
    ):
        fetch(web.url + "/a.bin")
    assert not web.requests


def test_a_full_disk_is_a_sentence_and_leaves_nothing(web, cache, tmp_path):
    web.pages["/a.bin"] = DATA
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n" + FETCH
    command = [sys.executable, "-c", limited, web.url + "/a.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: cannot write to the cache" in done.stderr
    assert "File too large" in done.stderr
    assert not files(cache)


def test_a_cache_that_is_read_only_still_serves(web, cache, monkeypatch):
    web.pages["/a.bin"] = DATA
    path = fetch(web.url + "/a.bin")
    (path.parent / ".lock").unlink(missing_ok=True)
    for folder in (path.parent, cache):
        folder.chmod(0o555)
    try:
        assert fetch(web.url + "/a.bin") == path
        assert not (path.parent / ".lock").exists()
    finally:
        for folder in (path.parent, cache):
            folder.chmod(0o755)


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("HEAR_M2D_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "hear-m2d"
    monkeypatch.setenv("HEAR_M2D_CACHE", "~/elsewhere")
    assert cache_folder() == (tmp_path.__class__.home() / "elsewhere")
