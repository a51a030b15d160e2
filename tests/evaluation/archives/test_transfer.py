import hashlib
import random

import pytest

from hear_m2d.evaluation.archives.catalog import RemoteFile
from hear_m2d.evaluation.archives.transfer import fetch_file
from hear_m2d.utils.errors import InputError, WorkFailedError

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def remote(server):
    """A function that describes the file on the server."""
    server.files["/a.tar.gz"] = CONTENT

    def describe(*, size: bool = True, md5: bool = True) -> RemoteFile:
        digest = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        return RemoteFile(
            "a.tar.gz", f"{server.url}/a.tar.gz", len(CONTENT) if size else None, digest if md5 else None
        )

    return describe


def ranges(server) -> list[str | None]:
    return [asked for _, asked in server.requests]


def test_a_file_is_downloaded_once(server, remote, tmp_path) -> None:
    target = fetch_file(remote(), tmp_path / "new" / "a.tar.gz")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["a.tar.gz"]
    fetch_file(remote(), target)
    assert ranges(server) == [None]


@pytest.mark.parametrize("known", [True, False])
def test_a_dropped_connection_is_continued_where_it_broke(server, remote, tmp_path, known) -> None:
    server.script = ["drop", "drop", "drop"]
    target = fetch_file(remote(size=known, md5=known), tmp_path / "a.tar.gz")
    assert target.read_bytes() == CONTENT
    starts = [int(asked[6:-1]) for asked in ranges(server) if asked is not None]
    assert len(starts) == 3
    assert 150_000 - 2**14 < starts[0] <= 150_000
    assert starts[0] < starts[1] < starts[2]


def test_a_later_call_continues_what_an_earlier_one_left(server, remote, tmp_path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:1000])
    fetch_file(remote(), tmp_path / "a.tar.gz")
    assert ranges(server) == ["bytes=1000-"]


def test_a_complete_part_is_not_requested_again(server, remote, tmp_path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT)
    assert fetch_file(remote(size=False), tmp_path / "a.tar.gz").read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]  # answered with 416: that was all


@pytest.mark.parametrize("size", [True, False])
def test_a_part_that_is_too_long_is_downloaded_anew(server, remote, tmp_path, size) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT + b"more")
    assert fetch_file(remote(size=size), tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_the_file_from_its_start(server, remote, tmp_path) -> None:
    server.script = ["drop", "whole"]
    assert fetch_file(remote(), tmp_path / "a.tar.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_a_length_that_is_too_long_does_no_harm(server, remote, tmp_path, known) -> None:
    server.script = ["long"]
    assert fetch_file(remote(size=known, md5=False), tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_length_that_is_too_short_is_noticed(server, remote, tmp_path) -> None:
    server.script = ["short"]
    assert fetch_file(remote(), tmp_path / "a.tar.gz").read_bytes() == CONTENT
    server.script = ["short", "short"]
    with pytest.raises(WorkFailedError, match="both times it has 150000 bytes instead of 300000"):
        fetch_file(remote(), tmp_path / "b.tar.gz")


def test_a_damaged_file_is_downloaded_again_then_refused(server, remote, tmp_path) -> None:
    server.script = ["damaged"]
    assert fetch_file(remote(), tmp_path / "a.tar.gz").read_bytes() == CONTENT
    server.script = ["damaged", "damaged"]
    with pytest.raises(WorkFailedError, match=r"both times it has the MD5 [0-9a-f]{32} instead of"):
        fetch_file(remote(), tmp_path / "b.tar.gz")
    assert not list(tmp_path.glob("b*"))


def test_busy_servers_are_asked_again(server, remote, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    server.script = ["503", "429", "503"]
    assert fetch_file(remote(), tmp_path / "a.tar.gz").read_bytes() == CONTENT
    assert "429 Too Many Requests; next try in 1 s" in caplog.text  # its Retry-After


def test_a_server_that_asks_to_wait_for_long_is_not_waited_for(server, remote, tmp_path) -> None:
    server.script = ["date"]
    with pytest.raises(WorkFailedError, match="503 Service Unavailable; the server asks to wait"):
        fetch_file(remote(), tmp_path / "a.tar.gz")


def test_a_server_that_stays_broken_is_given_up_and_the_bytes_are_kept(server, remote, tmp_path) -> None:
    server.script = ["drop", *["503"] * 20]
    with pytest.raises(
        WorkFailedError, match=r"503 Service Unavailable, 8 times in a row\. 1[345]\d{4} bytes are kept"
    ):
        fetch_file(remote(), tmp_path / "a.tar.gz")
    server.script = []
    server.requests.clear()
    assert fetch_file(remote(), tmp_path / "a.tar.gz").read_bytes() == CONTENT
    (asked,) = ranges(server)
    assert asked is not None


def test_a_server_that_is_not_there_is_failed_work(server, remote, tmp_path) -> None:
    with pytest.raises(WorkFailedError, match="8 times in a row"):
        fetch_file(RemoteFile("a.tar.gz", "http://127.0.0.1:9/a.tar.gz"), tmp_path / "a.tar.gz")


def test_a_refusal_is_not_repeated(server, remote, tmp_path) -> None:
    server.script = ["403"]
    with pytest.raises(InputError, match=r"403 Forbidden\. Download the archive by other means"):
        fetch_file(remote(), tmp_path / "a.tar.gz")
    with pytest.raises(InputError, match=r"404 Not Found\. Check --base-url"):
        fetch_file(RemoteFile("b", f"{server.url}/b"), tmp_path / "b")
    assert len(server.requests) == 2
