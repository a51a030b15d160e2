import io
import tarfile

import pytest

from hear_m2d.evaluation.archives.unpack import ArchiveError, unpack

NAME = "gunshot_triangulation-v1.0-full"


@pytest.fixture
def archive(tmp_path, small_task, pack):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(pack(small_task))
    return path


@pytest.fixture
def to(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    return folder


def run(archive, to):
    return unpack(archive, to, scratch=to / ".scratch")


@pytest.mark.parametrize("prefix", ["hear-2021.0.6/tasks", "tasks", ".", "a/b/c/d"])
def test_a_task_is_found_wherever_it_lies_in_the_archive(tmp_path, small_task, pack, to, prefix) -> None:
    archive = tmp_path / "any name"
    archive.write_bytes(pack(small_task, prefix=prefix))
    assert run(archive, to) == [to / NAME]
    for path in small_task.rglob("*.*"):
        assert (to / NAME / path.relative_to(small_task)).read_bytes() == path.read_bytes()
    assert [path.name for path in to.iterdir()] == [NAME]


def add(archive, change):
    """Write the archive again with one more member."""
    content = io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=content) as old, tarfile.open(archive, "w:gz") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
        member = tarfile.TarInfo("tasks/evil")
        change(member)
        new.addfile(member)


HOSTILE = {
    "absolute": lambda m: setattr(m, "name", "/tmp/evil"),
    "parent": lambda m: setattr(m, "name", "tasks/../../../evil"),
    "backslash": lambda m: setattr(m, "name", "..\\evil"),
    "symbolic link": lambda m: (setattr(m, "type", tarfile.SYMTYPE), setattr(m, "linkname", "/etc/passwd")),
    "link within": lambda m: (setattr(m, "type", tarfile.SYMTYPE), setattr(m, "linkname", "train.json")),
    "hard link": lambda m: (setattr(m, "type", tarfile.LNKTYPE), setattr(m, "linkname", "../../evil")),
    "device": lambda m: setattr(m, "type", tarfile.CHRTYPE),
    "fifo": lambda m: setattr(m, "type", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_leaves_the_folder(archive, to, kind) -> None:
    add(archive, HOSTILE[kind])
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(
        ArchiveError, match=r"is refused: .*(leads out of the folder|neither a file nor a folder)"
    ):
        run(archive, to)
    assert not list(to.iterdir())
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_noticed(archive, to, place) -> None:
    content = bytearray(archive.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(ArchiveError):
        run(archive, to)
    assert not list(to.iterdir())


@pytest.mark.parametrize("cut", [1, 6, 100, 20_000])
def test_a_cut_archive_is_noticed(archive, to, cut) -> None:
    archive.write_bytes(archive.read_bytes()[:-cut])
    with pytest.raises(ArchiveError, match="is damaged"):
        run(archive, to)
    assert not list(to.iterdir())


def test_an_archive_of_something_else_is_refused(tmp_path, to) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    with pytest.raises(ArchiveError, match="holds no task"):
        run(other, to)
    other.write_text("<html>Not found</html>")
    with pytest.raises(ArchiveError, match="is damaged: ReadError"):
        run(other, to)


def test_a_task_without_all_its_audio_is_refused(tmp_path, small_task, pack, to) -> None:
    (small_task / "16000/valid/valid00.wav").unlink()
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack(small_task))
    with pytest.raises(ArchiveError, match=r"lacks 1 of 12 files at 16000 Hz, such as valid/valid00\.wav"):
        run(archive, to)
    assert not list(to.iterdir())


def test_a_killed_unpack_leaves_nothing_that_looks_like_a_task(archive, to) -> None:
    (to / ".scratch/tasks" / NAME).mkdir(parents=True)
    (to / ".scratch/tasks" / NAME / "task_metadata.json").write_text("{}")
    assert run(archive, to) == [to / NAME]
    assert not (to / ".scratch").exists()


def test_another_rate_is_added_to_a_task_that_is_there(archive, small_task, pack, to) -> None:
    run(archive, to)
    archive.write_bytes(pack(small_task, rate=48000))
    run(archive, to)
    assert sorted(path.name for path in (to / NAME).iterdir() if path.is_dir()) == ["16000", "48000"]
    (small_task / "train.json").write_text("{}")
    archive.write_bytes(pack(small_task, rate=44100))
    with pytest.raises(ArchiveError, match=r"train\.json differs from the archive's|lacks"):
        run(archive, to)
