"""The labels of a task: the vocabulary as pandas reads it, and every split's labels against it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.archives.findings import Finding, error, warning
from hear_m2d.evaluation.archives.folder import VOCABULARY

BATCH_SIZE = 1024
"""Rows in a training batch of heareval."""

Splits = Mapping[str, Mapping[str, Any]]


def check_labels(task: Path, metadata: Mapping[str, Any], splits: Splits) -> list[Finding]:
    """Check the label vocabulary and the labels of the splits, ``{split: {file: labels}}``."""
    findings: list[Finding] = []
    used: dict[str, set[str]] = {split: set() for split in splits}
    known, changed = _read_vocabulary(task, findings)
    event = metadata.get("embedding_type") == "event"
    for split, rows in splits.items():
        for name, value in rows.items():
            for label, problem in _event_labels(value) if event else _scene_labels(value, metadata):
                if problem:
                    findings.append(error("labels", f"{split}.json", problem, row=name))
                    continue
                used[split].add(str(label))
                if str(label) not in known:
                    findings.append(_unknown_label(split, name, label, changed))
    # A label that pandas changes does no harm where the splits spell it as pandas does.
    all_used = set().union(*used.values())
    findings += [
        error(
            "vocabulary",
            VOCABULARY,
            f"pandas, as the kit uses it, reads {text!r} as {_spell(read)}",
            row=row,
        )
        for text, (read, row) in changed.items()
        if read not in all_used or text in all_used
    ]
    findings += _check_splits(metadata, splits, used, len(known))
    findings += _check_last_batch(metadata, splits)
    return findings


def _read_vocabulary(task: Path, findings: list[Finding]) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """Return the labels as the kit knows them, and those that pandas changes: text → (as read, row)."""
    import pandas as pd

    def report(message: str, row: str = "") -> None:
        findings.append(error("vocabulary", VOCABULARY, message, row=row))

    try:
        text = (task / VOCABULARY).read_text(encoding="utf-8")
        table = pd.read_csv(io.StringIO(text))
    except (OSError, ValueError) as problem:
        report(f"it cannot be read: {getattr(problem, 'strerror', None) or problem}")
        return set(), {}
    if list(table.columns) != ["idx", "label"]:
        report(f"its header must be idx,label, not {','.join(map(str, table.columns))}", "line 1")
        return set(), {}
    rows = [(line, row) for line, row in _csv_rows(text) if row]
    if len(rows) != len(table):
        report(f"pandas, as the kit uses it, finds {len(table)} rows in it, not {len(rows)}")
    if sorted(table["idx"].tolist()) != list(range(len(table))):
        report(f"its `idx` must be 0 to {len(table) - 1}, each once")
    known = ["" if pd.isna(label) else str(label) for label in table["label"].astype(str)]
    changed: dict[str, tuple[str, str]] = {}
    for (line, row), read in zip(rows, known, strict=False):
        label = row[1] if len(row) > 1 else ""
        if not label.strip():
            report("the label is empty", f"line {line}")
        elif read != label:
            changed[label] = (read, f"line {line}")
    for label, count in Counter(known).items():
        if label and count > 1:
            report(f"the label {label!r} is there {count} times")
    return set(known) - {""}, changed


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the rows after the header."""
    reader = csv.reader(io.StringIO(text))
    next(reader, None)
    for row in reader:
        yield reader.line_num, row


def _unknown_label(split: str, name: str, label: Any, changed: Mapping[str, tuple[str, str]]) -> Finding:
    why = f": pandas reads it as {_spell(changed[str(label)][0])}" if str(label) in changed else ""
    message = f"the label {label!r} is not in {VOCABULARY}{why}"
    return error("unknown label", f"{split}.json", message, row=name)


def _spell(read: str) -> str:
    return repr(read) if read else "a missing value"


def _scene_labels(value: Any, metadata: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield (label, what is wrong)."""
    if not isinstance(value, list):
        yield None, f"its labels must be a list, not {value!r}"
        return
    if metadata.get("prediction_type") == "multiclass" and len(value) != 1:
        yield None, f"a multiclass clip must have one label, not {len(value)}"
        return
    for label in value:
        if isinstance(label, str | int | float):
            yield label, ""
        else:
            yield None, f"a label must be text or a number, not {label!r}"


def _event_labels(value: Any) -> Iterator[tuple[Any, str]]:
    """Yield (label, what is wrong) of each event."""
    if not isinstance(value, list):
        yield None, f"its events must be a list, not {value!r}"
        return
    for number, event in enumerate(value, start=1):
        if not isinstance(event, dict) or not {"label", "start", "end"} <= event.keys():
            yield None, f"event {number} must have label, start and end, not {event!r}"
            continue
        start, end = event["start"], event["end"]
        if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in (start, end)):
            yield None, f"event {number}: start and end must be milliseconds, not {start!r} and {end!r}"
        elif not start <= end:
            yield None, f"event {number} ends at {end} ms, before its start at {start} ms"
        elif start < 0:
            yield None, f"event {number} starts at {start} ms, before the clip"
        else:
            yield event["label"], ""


def _check_splits(
    metadata: Mapping[str, Any], splits: Splits, used: Mapping[str, set[str]], classes: int
) -> list[Finding]:
    findings = []
    event = metadata.get("embedding_type") == "event"
    owner: dict[str, str] = {}
    metrics = metadata.get("evaluation") or [""]
    for split, rows in splits.items():
        file = f"{split}.json"
        if not rows:
            findings.append(error("empty split", file, "the split has no files"))
            continue
        if not used[split]:
            what = "events" if event else "labels"
            findings.append(error("empty split", file, f"no file of the split has {what}"))
        elif len(used[split]) == 1 and classes > 1:
            # The area under the curve is not a number for it, which stops the kit's training at once.
            report = error if str(metrics[0]) in ("aucroc", "d_prime") else warning
            findings.append(report("one class", file, f"all its labels are {min(used[split])!r}"))
        for name in rows:
            if owner.setdefault(name, split) != split:
                report = error if event else warning
                findings.append(report("file twice", file, f"it is in {owner[name]}.json, too", row=name))
    return findings


def _check_last_batch(metadata: Mapping[str, Any], splits: Splits) -> list[Finding]:
    """Find a training set whose last batch has one row, which the kit's batch normalization refuses."""
    if metadata.get("embedding_type") == "event":  # its rows are timestamps, whose number the model decides
        return []
    rows = {split: len(files) for split, files in splits.items()}
    if metadata.get("split_mode") == "trainvaltest":
        training = {"train": rows.get("train", 0)}
    else:
        folds = sorted(rows)
        training = {
            f"all but {test} and {valid}": sum(rows.values()) - rows[test] - rows[valid]
            for test, valid in zip(folds, folds[1:] + folds[:1], strict=True)
            if test != valid
        }
    return [
        error(
            "last batch",
            f"{name}.json" if name == "train" else "task_metadata.json",
            f"training on {name} has {count} clips: the last batch of {BATCH_SIZE} would have one row, "
            "which the kit cannot normalize. Leave one clip out",
        )
        for name, count in training.items()
        if count % BATCH_SIZE == 1
    ]
