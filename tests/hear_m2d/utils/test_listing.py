import csv

import pytest

from hear_m2d.utils.errors import InputError
from hear_m2d.utils.listing import join_labels, read_list, split_labels


def write(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def test_a_list_with_both_file_and_file_name_means_file_name(tmp_path):
    path = write(tmp_path / "a.csv", [("file", "file_name", "label"), ("1", "audio/1.wav", "dog")])
    listed = read_list(path)
    assert [row.file for row in listed.rows] == ["audio/1.wav"]
    assert listed.rows[0].cells["file"] == "1"
    assert listed.label_column == "label"


def test_a_tsv_is_separated_by_tabs(tmp_path):
    path = write(tmp_path / "a.tsv", [("path", "labels", "split"), ("a,b.wav", "x,y", "test")], "\t")
    (row,) = read_list(path).rows
    assert (row.line, row.file, row.label, row.cells["split"]) == (2, "a,b.wav", "x,y", "test")


def test_a_row_without_a_usable_path_keeps_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"file\nx\0y.wav\n0.wav\n")
    assert [(row.line, row.file) for row in read_list(tmp_path / "a.csv").rows] == [(2, ""), (3, "0.wav")]


def test_a_short_row_and_a_file_that_is_not_utf8_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"file,label\n\xe9.wav\n")
    (row,) = read_list(tmp_path / "a.csv").rows
    assert (row.file.encode("utf-8", "surrogateescape"), row.label) == (b"\xe9.wav", None)


def test_a_list_without_a_column_of_files_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [("name", "label"), ("a.wav", "x")])
    with pytest.raises(InputError, match="must have a column file_name or file or path; it has name, label"):
        read_list(path)


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x24\0\0\0WAVEfmt \x10\0",
        b"\x89PNG\r\n\x1a\n",
        "file,label\n".encode("utf-16"),
        b"datei,gr\xf6\xdfe\n",
    ],
)
def test_a_binary_file_as_a_list_is_not_quoted_in_the_error(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(
        InputError, match=r"a\.csv is not a text file \(UTF-8\): give a list of files as CSV$"
    ):
        read_list(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (None, []),
        (" ", []),
        ("dog", ["dog"]),
        ("dog, cat,", ["dog", "cat"]),
        ('"Male speech, man speaking", Music', ["Male speech, man speaking", "Music"]),
        ('12" single', ['12" single']),
    ],
)
def test_labels_are_separated_by_commas_and_a_quoted_label_may_hold_one(cell, labels):
    assert split_labels(cell) == labels


def test_a_quoted_cell_of_a_csv_may_hold_labels_with_commas(tmp_path):
    labels = ["Male speech, man speaking", "Music"]
    path = write(tmp_path / "a.csv", [("file", "label"), ("a.wav", join_labels(labels))])
    assert split_labels(read_list(path).rows[0].label) == labels


@pytest.mark.parametrize("labels", [[], ["a"], ["a, b", "c"], ['say "x"', "y"], ["größer", "a\nb"]])
def test_joined_labels_come_apart_again(labels):
    assert split_labels(join_labels(labels)) == [label.replace("\n", " ") for label in labels]


def test_one_word_in_two_unicode_forms_is_one_label():
    assert split_labels("gro\u0308\u00dfer") == split_labels("gr\u00f6\u00dfer") == ["gr\u00f6\u00dfer"]
