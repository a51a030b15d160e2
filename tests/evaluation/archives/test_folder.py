import json
import shutil
from pathlib import Path

import pytest

from hear_m2d.evaluation.archives.folder import check_rate, find_tasks, read_task
from hear_m2d.utils.errors import InputError


@pytest.fixture
def tasks(tmp_path: Path, tiny_tasks) -> Path:
    folder = tmp_path / "tasks"
    tiny_tasks.scene_multiclass(folder, sizes=(4, 4, 4))
    (folder / "README.txt").write_text("a stray file")
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    (folder / ".hidden/task_metadata.json").write_text("{}")
    return folder


def test_only_folders_with_metadata_are_tasks(tasks: Path) -> None:
    (task,) = find_tasks(tasks)
    assert (task.name, task.metric, task.complete_rates()) == ("tones-v1.0-full", "top1_acc", [16000])
    assert {split: len(files) for split, files in task.splits.items()} == {"train": 4, "valid": 4, "test": 4}


def test_an_unknown_task_is_answered_with_the_nearest(tasks: Path) -> None:
    with pytest.raises(InputError, match=r"'tones-v1.0-ful'\. Did you mean tones-v1\.0-full"):
        find_tasks(tasks, ["tones-v1.0-ful"])


def test_no_tasks_says_where_there_are_some(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of tasks"):
        find_tasks(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=rf"a task itself: give its folder, {tasks}, and --task tones-v1.0-full"
    ):
        find_tasks(tasks / "tones-v1.0-full")
    with pytest.raises(InputError, match=f"There is one below {tasks}"):
        find_tasks(tmp_path)


def test_a_broken_task_is_named_by_its_file(tasks: Path) -> None:
    task = tasks / "tones-v1.0-full"
    (task / "valid.json").unlink()
    with pytest.raises(InputError, match=r"lacks valid\.json"):
        read_task(task)
    (task / "task_metadata.json").write_text("{}")
    with pytest.raises(InputError, match="`splits` must be a list of names, not None"):
        read_task(task)


def test_every_task_with_damaged_metadata_is_named_at_once(tasks: Path) -> None:
    for name in ("a", "b"):
        (tasks / name).mkdir()
        (tasks / name / "task_metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"a/task_metadata\.json: .*b/task_metadata\.json: "):
        find_tasks(tasks)


@pytest.mark.parametrize("key", ["splits", "evaluation"])
@pytest.mark.parametrize("value", ["train", None, 3, {"train": 1}, ["train", 1]])
def test_metadata_of_another_type_are_refused(tasks: Path, key: str, value: object) -> None:
    file = tasks / "tones-v1.0-full/task_metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=rf"`{key}` must be a list of names, not "):
        read_task(file.parent)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "it must hold a JSON object"),
        ('{"splits": ["test"], "evaluation": ["mAP"]}', "`task_name` must be a name, not None"),
        ('{"splits": ["../x"], "evaluation": ["mAP"], "task_name": "a"}', "which is not a plain file name"),
        ("{", "Expecting"),
    ],
)
def test_damaged_metadata_are_refused_with_the_reason(tasks: Path, content: str, why: str) -> None:
    (tasks / "tones-v1.0-full/task_metadata.json").write_text(content)
    with pytest.raises(InputError, match=why):
        read_task(tasks / "tones-v1.0-full")


def test_a_missing_rate_names_the_rates_there_and_a_command(tasks: Path) -> None:
    found = find_tasks(tasks)
    check_rate(found, 16000)
    with pytest.raises(
        InputError, match=r"at 32000 Hz.*tones-v1\.0-full has 16000 Hz\. Type: .*tasks --rate 32000"
    ):
        check_rate(found, 32000)


def test_a_task_without_audio_is_to_be_downloaded_not_resampled(tasks: Path) -> None:
    shutil.rmtree(tasks / "tones-v1.0-full/16000")
    with pytest.raises(InputError, match=r"no audio at any rate is in .*tones-v1\.0-full: download it again"):
        check_rate(find_tasks(tasks), 16000)


def test_the_digest_sees_labels_and_audio(tasks: Path) -> None:
    (task,) = find_tasks(tasks)
    before = task.digest(16000)
    assert task.digest(16000) == before
    labels = json.loads((task.path / "train.json").read_text())
    (task.path / "train.json").write_text(json.dumps({**labels, "train00.wav": ["d"]}))
    relabeled = task.digest(16000)
    assert relabeled != before
    with (task.path / "16000/test/test00.wav").open("ab") as file:
        file.write(b"\0\0")
    assert task.digest(16000) not in {before, relabeled}
