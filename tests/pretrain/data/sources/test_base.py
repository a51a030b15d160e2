"""The sources: each lists the same sounds in a stable order, and reads them in any part, in any process."""

import csv
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import AudioError, find_audio, read_audio
from hear_m2d.pretrain.data.prepare import prepare
from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sources import open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SUFFIXES = ("wav", "flac", "ogg", "mp3", "aiff")


def wave(index):
    return 0.1 * np.random.default_rng(index).standard_normal(8000 + 1000 * index)


def sound(index, suffix="wav"):
    file = io.BytesIO()
    soundfile.write(file, wave(index), 16000, format="OGG" if suffix == "ogg" else suffix.upper())
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_parquet(path, rows, *, label=None, names=None, row_group_size=2, paths=True):
    audio = pa.array(
        [{"bytes": content, "path": f"{index}.wav" if paths else None} for index, content in enumerate(rows)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"text": ["x"] * len(rows), "audio": audio})
    if label is not None:
        table = table.append_column("label", pa.array(label))
    if names:
        features = {"audio": {"_type": "Audio"}, "label": {"_type": "ClassLabel", "names": names}}
        metadata = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=row_group_size)


def everything(source):
    return [(item.name, item.label, item.read(16000).samples) for item in source.part(0, len(source))]


def parts_equal_the_whole(source):
    """Read it in parts that travel by pickle; return whether that is what it gives at once."""
    whole = everything(source)
    for size in (1, 2, 3):
        actual = []
        for first in range(0, len(source), size):
            part = list(pickle.loads(pickle.dumps(source.part(first, min(first + size, len(source))))))
            assert len(part) == min(size, len(source) - first)
            actual += [(item.name, item.label, item.read(16000).samples) for item in part]
        assert [row[:2] for row in actual] == [row[:2] for row in whole]
        for a, b in zip(actual, whole, strict=True):
            np.testing.assert_array_equal(a[2], b[2])
    return True


def test_a_folder_is_listed_like_find_audio_does(tmp_path):
    taken, left = ("b.wav", "a/z.flac", "a/b/c.OGG", "a.wav", "a-/q.wav"), (".a.wav", ".dot/x.wav", "no.txt")
    for name in (*taken, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "back").symlink_to(tmp_path, target_is_directory=True)
    source = open_source(tmp_path)
    names = [item.name for item in source.part(0, len(source))]
    assert names == [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert names == ["a-/q.wav", "a.wav", "a/b/c.OGG", "a/z.flac", "b.wav"]
    assert source.sizes.tolist() == [4] * 5
    assert source.problems == ()


def test_every_source_gives_the_same_sounds(tmp_path):
    contents = [sound(index, suffix) for index, suffix in enumerate(SUFFIXES)]
    (tmp_path / "folder").mkdir()
    for index, suffix in enumerate(SUFFIXES):
        (tmp_path / "folder" / f"{index}.{suffix}").write_bytes(contents[index])
    write_tar(tmp_path / "a.tar", [(f"{i}.{s}", contents[i]) for i, s in enumerate(SUFFIXES)])
    write_parquet(tmp_path / "a.parquet", contents)
    lines = ["file_name", *(f"folder/{i}.{s}" for i, s in enumerate(SUFFIXES))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    expected = [read_audio(tmp_path / "folder" / f"{i}.{s}", 16000) for i, s in enumerate(SUFFIXES)]
    for place in ("folder", "a.tar", "a.parquet", "a.csv"):
        source = open_source(tmp_path / place)
        actual = everything(source)
        assert len(actual) == 5
        for (_, label, audio), wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(audio, wanted)
            assert label is None
        assert len({name for name, _, _ in actual}) == 5
        assert parts_equal_the_whole(source)
        assert str(tmp_path) not in json.dumps(source.describe())


@pytest.mark.parametrize("column", ["file_name", "file", "path"])
def test_a_list_names_files_relative_to_its_folder_in_its_own_order_with_labels(tmp_path, column):
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "deep/b.wav"):
        (tmp_path / name).write_bytes(sound(1))
    rows = [("x", "deep/b.wav", "dog,cat"), ("y", "a.wav", ""), ("z", "gone.wav", "cat"), ("w", "", "cat")]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("other", column, "label"), *rows])
    source = open_source(tmp_path / "list.csv")
    entries = list(source.part(0, 3))
    assert [(e.name, e.label) for e in entries] == [
        ("deep/b.wav", "dog,cat"), ("a.wav", None), ("gone.wav", "cat"),
    ]  # fmt: skip
    assert source.problems == (("list.csv, line 5", "unreadable", "it names no file"),)
    with pytest.raises(FileNotFoundError):
        entries[2].read(16000)
    prepared = prepare(tmp_path / "list.csv", tmp_path / "out")
    assert prepared.skipped == {"unreadable": 2}
    data = LogMelData(tmp_path / "out")
    assert data.labels == ("cat", "dog")
    assert data.label(0) == "dog,cat"
    assert data.multi_hot(0).tolist() == [1, 1]


def test_a_list_without_a_column_of_files_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("name,label\na.wav,1\n")
    with pytest.raises(ValueError, match=r"list\.csv must have a column file_name .* it has name, label"):
        open_source(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file\n")
    with pytest.raises(ValueError, match="holds no audio"):
        open_source(tmp_path / "list.csv")


def test_a_null_byte_in_a_list_costs_that_line_alone(tmp_path):
    (tmp_path / "0.wav").write_bytes(sound(0))
    (tmp_path / "list.csv").write_bytes(b"file\nx\0y.wav\n0.wav\n")
    summary = prepare(tmp_path / "list.csv", tmp_path / "out")
    assert (summary.clips, summary.skipped) == (1, {"unreadable": 1})


def test_a_null_byte_in_a_path_of_parquet_costs_that_row_alone(tmp_path):
    audio = [{"bytes": None, "path": "x\0y.wav"}, {"bytes": sound(0), "path": "0.wav"}]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "a.parquet")
    summary = prepare(tmp_path / "a.parquet", tmp_path / "out")
    assert (summary.clips, summary.skipped) == (1, {"unreadable": 1})


def test_members_of_tars_take_their_label_from_the_member_beside_them(tmp_path):
    (tmp_path / "tars").mkdir()
    write_tar(
        tmp_path / "tars" / "0.tar",
        [
            ("x/one.cls", b"dog\n"), ("x/one.flac", sound(1, "flac")), ("two.wav", sound(2)),
            ("two.json", b'{"label": ["a", "b"], "other": 1}'), ("three.wav", sound(3)),
            ("._three.wav", b"junk"),
            ("three.json", b"no json"), ("readme.md", b"text"),
        ],
    )  # fmt: skip
    write_tar(tmp_path / "tars" / "1.tar", [("one.wav", sound(4)), ("one.txt", "größer".encode())])
    for source in (open_source(tmp_path / "tars"), open_source(str(tmp_path / "tars" / "*.tar"))):
        assert [(name, label) for name, label, _ in everything(source)] == [
            ("0.tar/x/one.flac", "dog"), ("0.tar/two.wav", "a,b"), ("0.tar/three.wav", None),
            ("1.tar/one.wav", "größer"),
        ]  # fmt: skip
        assert parts_equal_the_whole(source)


def test_a_damaged_tar_is_reported_and_the_others_are_read(tmp_path):
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", [(f"{i}.wav", sound(i)) for i in range(3)])
    whole = (tmp_path / "tars" / "0.tar").read_bytes()
    (tmp_path / "tars" / "1.tar").write_bytes(b"no archive, but long enough" * 100)
    (tmp_path / "tars" / "2.tar").write_bytes(whole[: 512 + len(sound(0)) + 20000])
    source = open_source(tmp_path / "tars")
    assert [name for name, reason, _ in source.problems] == ["1.tar", "2.tar"]
    assert ["without compression" in message for _, _, message in source.problems] == [True, False]
    summary = prepare(tmp_path / "tars", tmp_path / "out")
    assert summary.clips == 5
    assert summary.skipped["corrupt"] == 2
    (tmp_path / "tars" / "0.tar").unlink()
    (tmp_path / "tars" / "2.tar").unlink()
    with pytest.raises(ValueError, match=r"holds no audio: .*1\.tar: .*without compression"):
        open_source(tmp_path / "tars")


def test_a_tar_whose_header_promises_terabytes_is_read_as_far_as_it_goes(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.wav", sound(0))])
    liar = tarfile.TarInfo("1.wav")
    liar.size = 1 << 42
    whole = (tmp_path / "a.tar").read_bytes()[: 512 + -(-len(sound(0)) // 512) * 512]
    (tmp_path / "a.tar").write_bytes(whole + liar.tobuf() + sound(1)[:10000])
    summary = prepare(tmp_path / "a.tar", tmp_path / "out")
    assert summary.clips == 1
    assert summary.skipped == {"corrupt": 1, "truncated": 1}


def test_rows_of_parquet_take_the_names_of_their_classes(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "0.parquet", [sound(i) for i in range(5)], label=[0, 1, 1, 0, None],
                  names=["dog", "cat"])  # fmt: skip
    write_parquet(tmp_path / "data" / "1.parquet", [sound(i) for i in range(5, 8)], paths=False,
                  label=[["a", "b"], [], ["c"]], row_group_size=10)  # fmt: skip
    source = open_source(tmp_path / "data")
    assert [(name, label) for name, label, _ in everything(source)] == [
        ("0.parquet/0-0.wav", "dog"), ("0.parquet/1-1.wav", "cat"), ("0.parquet/2-2.wav", "cat"),
        ("0.parquet/3-3.wav", "dog"), ("0.parquet/4-4.wav", None),
        ("1.parquet/0", "a,b"), ("1.parquet/1", None), ("1.parquet/2", "c"),
    ]  # fmt: skip
    assert source.seams.tolist() == [2, 4, 5]
    assert parts_equal_the_whole(source)


def test_a_plain_column_of_bytes_is_read_too(tmp_path):
    table = pa.table({"id": [1, 2], "bytes": [sound(0), sound(1)], "label": ["dog", None]})
    pq.write_table(table, tmp_path / "plain.parquet")
    actual = everything(open_source(tmp_path / "plain.parquet"))
    assert [row[:2] for row in actual] == [("plain.parquet/0", "dog"), ("plain.parquet/1", None)]
    np.testing.assert_allclose(actual[1][2], wave(1), atol=1e-4)


def test_parquet_without_audio_or_damaged_is_named(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"text\.parquet has no column of audio.*: a, b"):
        open_source(tmp_path / "text.parquet")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "0.parquet", [sound(i) for i in range(4)])
    (tmp_path / "data" / "1.parquet").write_bytes(b"nothing of the kind")
    damaged = bytearray((tmp_path / "data" / "0.parquet").read_bytes())
    damaged[40:4000] = bytes(3960)  # of the first row group; the footer is whole
    (tmp_path / "data" / "2.parquet").write_bytes(damaged)
    source = open_source(tmp_path / "data")
    assert [name for name, _, _ in source.problems] == ["1.parquet"]
    entries = list(source.part(0, len(source)))
    assert len(entries) == 8
    with pytest.raises(AudioError, match=r"2\.parquet/0"):
        entries[4].read(16000)
    np.testing.assert_array_equal(entries[7].read(16000).samples, entries[3].read(16000).samples)


def test_a_path_that_is_not_a_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="matches no file"):
        open_source(str(tmp_path / "*.tar"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="not an audio file by its suffix"):
        open_source(tmp_path / "a.txt")
    for name in ("a.tar.gz", "a.zip"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"{name} is compressed: unpack it"):
            open_source(tmp_path / name)
    with pytest.raises(ValueError, match=r"must match \.tar files"):
        open_source(str(tmp_path / "*.txt"))
    with pytest.raises(ValueError, match="holds no audio"):
        open_source(tmp_path)


def test_a_pipe_is_refused_or_skipped_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "a.tar")
    for name in ("a.wav", "a.csv", "a.tar"):
        with pytest.raises(ValueError, match=rf"{name} is not a regular file"):
            open_source(tmp_path / name)
    (tmp_path / "0.wav").write_bytes(sound(0))
    (tmp_path / "list.csv").write_text("file\na.wav\n0.wav\n")
    summary = prepare(tmp_path / "list.csv", tmp_path / "out")
    assert (summary.clips, sum(summary.skipped.values())) == (1, 1)


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, refuse_folder):
    (tmp_path / "audio" / "closed").mkdir(parents=True)
    (tmp_path / "audio" / "0.wav").write_bytes(sound(0))
    refuse_folder("closed")
    assert open_source(tmp_path / "audio").problems == (("closed/", "unreadable", "Permission denied"),)


@pytest.mark.parametrize("path", ["../secret.wav", "{}/secret.wav", "a/../../secret.wav"])
def test_a_path_in_a_row_of_parquet_does_not_lead_out_of_its_folder(tmp_path, path):
    (tmp_path / "secret.wav").write_bytes(sound(1))
    (tmp_path / "data").mkdir()
    audio = [{"bytes": None, "path": path.format(tmp_path)}, {"bytes": sound(0), "path": "0.wav"}]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "data" / "a.parquet")
    items = list(open_source(tmp_path / "data" / "a.parquet").part(0, 2))
    with pytest.raises(AudioError, match=r"leads out of the table's folder"):
        items[0].read(16000)


def test_a_label_with_a_comma_in_a_list_of_labels_stays_one_label(tmp_path):
    write_parquet(tmp_path / "a.parquet", [sound(0)], label=[["Male speech, man speaking", "Music"]])
    prepare(tmp_path / "a.parquet", tmp_path / "out")
    assert LogMelData(tmp_path / "out").labels == ("Male speech, man speaking", "Music")


@pytest.mark.parametrize("address", ["http://host/prepared", "s3://bucket/prepared", "http:/host/prepared"])
def test_an_address_is_named_as_it_was_typed_and_to_be_copied_first(address):
    typed = address.replace(":/host", "://host")
    with pytest.raises(
        ValueError, match=rf"^{typed} is an address: .* Copy it here first \(hf download, rsync"
    ):
        open_source(address)
