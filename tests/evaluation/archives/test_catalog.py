import csv

import pytest

from hear_m2d.evaluation.archives.catalog import all_tasks, locate_archives, parse_list, select_tasks
from hear_m2d.utils.errors import InputError

BASE = "https://example.org/records/1/files"


def names(*wanted: str) -> list[str]:
    return [task.directory for task in select_tasks(wanted)]


def test_nineteen_tasks_are_twenty_directories() -> None:
    assert len(all_tasks()) == 20
    assert len({task.leaderboard for task in all_tasks()}) == 19
    assert len({task.leaderboard_id for task in all_tasks()}) == 19


def test_the_table_gives_the_size_that_follows_from_clips_and_length() -> None:
    for task in all_tasks():
        if task.sample_duration is not None:
            gigabytes = task.clips * task.sample_duration * 48000 * 2 / 1e9
            assert task.audio_gb == pytest.approx(gigabytes, abs=0.05), task.directory


def test_a_task_is_known_by_directory_and_by_leaderboard_name_in_any_spelling() -> None:
    assert names("esc50-v2.0.0-full") == names("ESC-50") == names("esc50") == ["esc50-v2.0.0-full"]
    assert names("DCASE 2016") == names("dcase 2016 task 2") == ["dcase2016_task2-hear2021-full"]
    assert names("speech commands 5h") == ["speech_commands-v0.0.2-5h"]
    assert names("Beehive") == ["beehive_states_fold0-v2-full", "beehive_states_fold1-v2-full"]


def test_small_and_all_come_in_rising_size() -> None:
    sizes = [task.audio_gb for task in select_tasks(["all"])]
    assert len(sizes) == 20
    assert sizes == sorted(sizes)
    small = select_tasks(["small"])
    assert [task.audio_gb for task in small] == [size for size in sizes if size <= 1]
    assert names("ESC-50", "small") == names("small")


def test_an_unknown_task_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(
        InputError, match=r"unknown task 'esc50-v2.0.0-ful'\. Did you mean esc50-v2\.0\.0-full"
    ):
        select_tasks(["esc50-v2.0.0-ful"])


def test_every_published_column_has_its_task(repo_root) -> None:
    with (repo_root / "evaluation/report/hear2021_leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert {row["task"] for row in rows} == {task.leaderboard_id for task in all_tasks()}
    metrics = {row["task"]: row["metric"] for row in rows}
    assert all(task.evaluation[0] == metrics[task.leaderboard_id] for task in all_tasks())
    for column in {row["leaderboard_column"] for row in rows}:
        assert select_tasks([column]), column


FILE = {
    "key": "a-48000.tar.gz",
    "size": 12,
    "checksum": "md5:" + "a" * 32,
    "links": {"self": "https://x.org/a"},
}


@pytest.mark.parametrize(
    ("content", "size", "md5", "url"),
    [
        ({"files": [FILE]}, 12, "a" * 32, "https://x.org/a"),
        ({"files": [FILE | {"checksum": "A" * 32}]}, 12, "a" * 32, "https://x.org/a"),
        ({"files": {"entries": {"a": FILE}}}, 12, "a" * 32, "https://x.org/a"),
        ({"files": [{"filename": "a-48000.tar.gz", "filesize": 3}]}, 3, None, f"{BASE}/a-48000.tar.gz"),
        (
            {"files": [FILE | {"size": "12", "checksum": "sha1:1", "links": []}]},
            None,
            None,
            f"{BASE}/a-48000.tar.gz",
        ),
        ({"files": [None, 3, {"key": 3}, FILE]}, 12, "a" * 32, "https://x.org/a"),
    ],
)
def test_a_record_is_read_in_every_form_that_it_may_have(content, size, md5, url) -> None:
    (file,) = parse_list(content, BASE).values()
    assert (file.name, file.size, file.md5, file.url) == ("a-48000.tar.gz", size, md5, url)


@pytest.mark.parametrize("content", [None, [], {}, {"files": None}, {"files": [{"key": "../../a.tar.gz"}]}])
def test_a_record_without_usable_files_gives_none(content) -> None:
    assert parse_list(content, BASE) == {}


def test_without_a_file_list_the_address_is_the_base_and_the_name(server) -> None:
    tasks = select_tasks(["Beehive"])
    for base, expected in [
        (f"{server.url}/mirror/", f"{server.url}/mirror"),
        (f"{server.url}/records/12", f"{server.url}/records/12/files"),
    ]:
        for task, file in locate_archives(tasks, base).items():
            assert file.url == f"{expected}/hear2021-{task.directory}-48000.tar.gz"
            assert file.md5 == task.md5 is not None
            assert file.size is None
    assert [path for path, _ in server.requests] == ["/api/records/12"]


def test_the_file_list_of_the_record_is_the_source(server) -> None:
    (task,) = select_tasks(["esc50"])
    server.files["/api/records/7"] = b"""{"files": [{"key": "hear2021-esc50-v2.0.0-full-48000.tar.gz",
        "size": 5, "checksum": "md5:00000000000000000000000000000000", "links": {"self": "http://a.org/b"}}]}"""
    server.script = ["503"]
    file = locate_archives([task], f"{server.url}/records/7/files")[task]
    assert (file.url, file.size, file.md5) == ("http://a.org/b", 5, "0" * 32)
