"""Lists of audio files as CSV or TSV, and labels in one cell: the same meaning for every command."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hear_m2d.utils.errors import InputError

FILE_COLUMNS = ("file_name", "file", "path")  # the first one in the list is used
LABEL_COLUMNS = ("label", "labels")
_NOT_TEXT = "[\0-\x08\x0e-\x1f\ud800-\udfff]"  # control characters, and bytes that are not UTF-8


@dataclass(frozen=True)
class ListedFile:
    """One row of a list."""

    line: int  # line number in the list, from 1 (the header)
    file: str  # path as written; empty if the row names no usable path
    label: str | None  # the label cell as written, in Unicode normal form C; None if it is empty or missing
    cells: dict[str, str]  # every cell by its column


@dataclass(frozen=True)
class FileList:
    """A CSV or TSV list of audio files."""

    columns: tuple[str, ...]
    rows: tuple[ListedFile, ...]
    label_column: str | None  # None if there is none


def read_list(path: Path) -> FileList:
    """Read a list of audio files.

    The column of paths is the first of ``FILE_COLUMNS`` that the list has, that of labels the first of
    ``LABEL_COLUMNS``. A ``.tsv`` is separated by tabs, any other list by commas. Bytes that are not UTF-8 are
    kept in file names (``surrogateescape``).

    Raises:
        InputError: It is not a regular file, not a text, not a CSV, or has no column of files.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file")
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns = tuple(reader.fieldnames or ())
            file_column = next((name for name in FILE_COLUMNS if name in columns), None)
            label_column = next((name for name in LABEL_COLUMNS if name in columns), None)
            if file_column is None:
                if re.search(_NOT_TEXT, "".join(columns)):
                    raise InputError(f"{path} is not a text file (UTF-8): give a list of files as CSV")
                raise InputError(
                    f"{path} must have a column {' or '.join(FILE_COLUMNS)}; it has {', '.join(columns)}"
                )
            rows = []
            for row in reader:
                cells = {name: row[name] or "" for name in columns}
                name = cells[file_column]
                label = unicodedata.normalize("NFC", cells[label_column]) if label_column else ""
                # A path cannot hold a null byte.
                rows.append(ListedFile(reader.line_num, "" if "\0" in name else name, label or None, cells))
    except csv.Error as error:
        raise InputError(f"{path} is not a list of files: {error}") from error
    return FileList(columns, tuple(rows), label_column)


def split_labels(text: str | None) -> list[str]:
    """Return the labels of a cell, in Unicode normal form C.

    Labels are separated by commas. A label with a comma in it stands in double quotes:
    ``"Male speech, man speaking",Music``. (In a CSV file, the quotes of such a cell are doubled.)
    """
    text = unicodedata.normalize("NFC", text or "").replace("\n", " ")
    quoted = '"' in text
    parts = next(csv.reader([text], skipinitialspace=True), []) if quoted else text.split(",")
    return [label for part in parts if (label := part.strip())]


def join_labels(labels: Iterable[str]) -> str:
    """Return labels as one cell, which :func:`split_labels` takes apart again."""
    cell = io.StringIO()
    csv.writer(cell, lineterminator="").writerow([label for label in labels if label.strip()])
    return cell.getvalue()
