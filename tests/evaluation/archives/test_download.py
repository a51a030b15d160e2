import hashlib
import json
import shutil
from collections import namedtuple

import pytest

from hear_m2d.evaluation.archives.download import download_tasks, import_archives
from hear_m2d.utils.errors import InputError, WorkFailedError

NAME = "gunshot_triangulation-v1.0-full"
ARCHIVE = f"hear2021-{NAME}-48000.tar.gz"


@pytest.fixture
def record(server, small_task, pack):
    """The archive of one small task on the server, with the record's file list."""
    content = pack(small_task, rate=48000)
    server.files[f"/records/5/files/{ARCHIVE}"] = content
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    files = [{"key": ARCHIVE, "size": len(content), "checksum": f"md5:{md5}"}]
    server.files["/api/records/5"] = json.dumps({"files": files}).encode()
    return f"{server.url}/records/5/files"


def test_a_task_is_downloaded_unpacked_and_not_asked_for_again(server, record, tmp_path) -> None:
    (task,) = download_tasks(["Gunshot"], tmp_path / "tasks", base_url=record)
    assert task == tmp_path / "tasks" / NAME
    assert len(list((task / "48000").rglob("*.wav"))) == 12
    assert [path.name for path in task.parent.iterdir()] == [NAME]  # the archive is gone
    server.requests.clear()
    assert download_tasks(["gunshot_triangulation"], tmp_path / "tasks", base_url=record) == [task]
    assert not server.requests


def test_an_archive_may_be_kept(record, tmp_path) -> None:
    download_tasks(["Gunshot"], tmp_path, base_url=record, keep=True)
    assert (tmp_path / ".download" / ARCHIVE).is_file()


def test_drops_a_busy_server_and_damage_end_in_the_same_task(server, record, tmp_path) -> None:
    server.script = ["good", "drop", "503", "damaged", "drop"]
    (task,) = download_tasks(["Gunshot"], tmp_path, base_url=record)
    assert len(list((task / "48000").rglob("*.wav"))) == 12


def test_damage_is_noticed_without_a_sum(server, record, tmp_path) -> None:
    del server.files["/api/records/5"]
    server.script = ["good", "damaged"]
    with pytest.raises(WorkFailedError, match="The archive was removed"):
        download_tasks(["Gunshot"], tmp_path / "tasks", base_url=record)
    assert not list((tmp_path / "tasks").iterdir())
    assert download_tasks(["Gunshot"], tmp_path / "tasks", base_url=record)


def test_one_task_that_fails_leaves_the_others(server, record, tmp_path) -> None:
    with pytest.raises(InputError, match=r"beijing_opera.*404 Not Found"):
        download_tasks(["Gunshot", "Beijing Opera"], tmp_path, base_url=record)
    assert (tmp_path / NAME).is_dir()


def test_a_full_disk_is_noticed_before_the_first_byte(server, record, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**9))
    with pytest.raises(InputError, match=r"has 1\.0 GB free; 2\.0 GB are needed"):
        download_tasks(["ESC-50"], tmp_path, base_url=record)
    assert [path for path, _ in server.requests] == ["/api/records/5"]


def test_two_downloads_into_one_folder_are_refused(record, tmp_path) -> None:
    from hear_m2d.utils.files import lock_folder

    with lock_folder(tmp_path / ".download"), pytest.raises(InputError, match="another process"):
        download_tasks(["Gunshot"], tmp_path, base_url=record)


def test_archives_of_this_machine_work_the_same_way(tmp_path, small_task, pack) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / ARCHIVE).write_bytes(pack(small_task, rate=48000))
    assert import_archives(local / ARCHIVE, tmp_path / "a") == [tmp_path / "a" / NAME]
    assert import_archives(local, tmp_path / "b", ["Gunshot"]) == [tmp_path / "b" / NAME]
    assert import_archives(local, tmp_path / "c") == [tmp_path / "c" / NAME]
    assert (local / ARCHIVE).is_file()
    with pytest.raises(InputError, match="there is no archive of esc50"):
        import_archives(local, tmp_path / "d", ["ESC-50"])
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        import_archives(tmp_path / "nowhere", tmp_path / "d")
    (local / ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        import_archives(local, tmp_path / "d")


def test_the_official_archive_unpacks(data_dir, tmp_path) -> None:
    (archive,) = (data_dir / "archives").glob("*spoken_digit*.tar.gz")
    (task,) = import_archives(archive, tmp_path)
    assert task.name == "spoken_digit-1.0.9-small"
    assert len(list((task / "44100").rglob("*.wav"))) == 100
