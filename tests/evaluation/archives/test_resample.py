import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from hear_m2d.evaluation.archives.check import check_tasks
from hear_m2d.evaluation.archives.download import import_archives
from hear_m2d.evaluation.archives.resample import resample_tasks
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import disk_is_full, lock_folder


@pytest.mark.parametrize("rate", [22050, 32000, 44100, 48000])
def test_every_rate_of_hear_can_be_made(small_task, rate) -> None:
    (done,) = resample_tasks(small_task.parent, rate)
    assert (done.files, done.source_rate, done.audio_s) == (12, 16000, 12.0)
    for path in (small_task / str(rate)).rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (rate, rate, 1, "PCM_16")
    assert not [finding for finding in check_tasks(small_task, rate=rate) if finding.level == "error"]


def test_the_highest_complete_rate_is_the_source(small_task) -> None:
    resample_tasks(small_task, 48000)
    resample_tasks(small_task, 32000)
    (small_task / "48000/test/test00.wav").unlink()
    (done,) = resample_tasks(small_task, 22050)
    assert done.source_rate == 32000
    source, _ = soundfile.read(small_task / "32000/train/train00.wav", dtype="int16")
    made, _ = soundfile.read(small_task / "22050/train/train00.wav", dtype="int16")
    np.testing.assert_array_equal(made, soxr.resample(source, 32000, 22050, quality="HQ"))


def test_an_interrupted_run_is_continued_and_never_looks_complete(small_task) -> None:
    broken = small_task / "16000/valid/valid03.wav"
    content = broken.read_bytes()
    broken.write_bytes(b"damaged")
    with pytest.raises(WorkFailedError, match=r"valid03\.wav cannot be read"):
        resample_tasks(small_task, 32000, jobs=1)
    assert not (small_task / "32000").exists()
    left = 12 - len(list((small_task / ".32000.partial").rglob("*.wav")))
    assert 0 < left <= 5
    broken.write_bytes(content)
    (done,) = resample_tasks(small_task, 32000)
    assert done.files == left
    assert (small_task / "32000").is_dir()
    assert not (small_task / ".32000.partial").exists()
    (again,) = resample_tasks(small_task, 32000)
    assert again.files == 0


def test_a_rate_that_is_there_in_part_is_completed_and_extra_files_are_listed(small_task) -> None:
    resample_tasks(small_task, 32000)
    (small_task / "32000/test/test01.wav").unlink()
    (small_task / "32000/test/other.wav").write_bytes(b"")
    (done,) = resample_tasks(small_task, 32000)
    assert (done.files, done.result.missing, done.result.extra) == (1, (), ("test/other.wav",))


def test_threads_do_not_change_the_files(small_task) -> None:
    resample_tasks(small_task, 32000, jobs=1)
    one = {path.name: path.read_bytes() for path in (small_task / "32000").rglob("*.wav")}
    (small_task / "32000").rename(small_task.parent / "moved")
    resample_tasks(small_task, 32000, jobs=4)
    assert {path.name: path.read_bytes() for path in (small_task / "32000").rglob("*.wav")} == one


def test_float_files_become_16_bit(small_task) -> None:
    path = small_task / "16000/train/train00.wav"
    audio, _ = soundfile.read(path, dtype="float32")
    soundfile.write(path, audio, 16000, subtype="FLOAT")
    resample_tasks(small_task, 32000)
    made, _ = soundfile.read(small_task / "32000/train/train00.wav")
    assert np.abs(made).max() == pytest.approx(np.abs(audio).max(), rel=0.05)


def test_what_cannot_be_resampled_is_refused_in_a_sentence(small_task) -> None:
    with pytest.raises(InputError, match="must be one of 16000, 22050, 32000, 44100, 48000, not 8000"):
        resample_tasks(small_task, 8000)
    with pytest.raises(InputError, match=r"unknown task in .*Did you mean gunshot"):
        resample_tasks(small_task.parent, 32000, names=["gunshot_triangulation-v1.0-ful"])
    (small_task / "16000/train/train00.wav").unlink()
    with pytest.raises(InputError, match=r"16000 Hz lacks 1 of 12 files, such as train/train00\.wav"):
        resample_tasks(small_task, 32000)


def test_a_disk_that_fills_up_is_reported_and_the_same_call_continues(small_task, small_disk) -> None:
    task = Path(shutil.copytree(small_task, small_disk / "task"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 150_000))  # room for one file or two
    with pytest.raises(OSError, match="No space left on device") as caught:
        resample_tasks(task, 32000)
    assert disk_is_full(caught.value)  # hear-m2d: "make room", exit code 1
    filler.unlink()
    (done,) = resample_tasks(task, 32000)
    assert done.result.complete
    assert 0 < done.files < 12


def test_a_name_that_leads_out_of_the_task_is_refused(small_task) -> None:
    (small_task / "train.json").write_text('{"../../../evil.wav": ["a"]}')
    with pytest.raises(InputError, match="is not a plain file name"):
        resample_tasks(small_task, 32000)


def test_the_official_archive_at_16_khz(data_dir, tmp_path) -> None:
    (archive,) = (data_dir / "archives").glob("*spoken_digit*.tar.gz")
    import_archives(archive, tmp_path)
    (done,) = resample_tasks(tmp_path, 16000)
    assert (done.source_rate, done.files, done.audio_s) == (44100, 100, 100.0)
    assert check_tasks(tmp_path, rate=16000) == []


def test_two_runs_in_one_task_are_refused(small_task) -> None:
    with lock_folder(small_task), pytest.raises(InputError, match="another process is at work"):
        resample_tasks(small_task, 32000)
