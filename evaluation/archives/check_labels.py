"""The labels of a task: the vocabulary as pandas reads it, and every split's labels against it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.archives.findings import Finding, error, warning
from hear_m2d.evaluation.archives.folder import VOCABULARY

BATCH_SIZE = 1024
"""Rows in a training batch of heareval."""

Splits = Mapping[str, Mapping[str, Any]]


@dataclass
class _Vocabulary:
    known: set[str] = field(default_factory=set)
    """The labels as the kit knows them."""
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Labels that pandas changes: text → (as it is read, row)."""
    readable: bool = False


def check_labels(task: Path, metadata: Mapping[str, Any], splits: Splits) -> list[Finding]:
    """Check the label vocabulary and the labels of the splits, ``{split: {file: labels}}``."""
    findings: list[Finding] = []
    used: dict[str, set[str]] = {split: set() for split in splits}
    vocabulary = _read_vocabulary(task, findings)
    event = metadata.get("embedding_type") == "event"
    for split, rows in splits.items():
        for name, value in rows.items():
            for label, problem in _event_labels(value) if event else _scene_labels(value, metadata):
                if problem:
                    findings.append(error("labels", f"{split}.json", problem, row=name))
                    continue
                used[split].add(str(label))
                if vocabulary.readable and str(label) not in vocabulary.known:
                    findings.append(_unknown_label(split, name, label, vocabulary))
    all_used = set().union(*used.values())
    for text, (read, row) in vocabulary.changed.items():
        # If the splits write the label as pandas does, or do not use it, the kit works.
        report = error if text in all_used else warning
        if read not in all_used:
            message = f"pandas, as the kit uses it, reads {text!r} as {_spell(read)}"
            findings.append(report("vocabulary", VOCABULARY, message, row=row))
    findings += _check_splits(metadata, splits, used, vocabulary.known)
    findings += _check_last_batch(metadata, splits)
    return findings


def _read_vocabulary(task: Path, findings: list[Finding]) -> _Vocabulary:
    import pandas as pd

    def report(message: str, row: str = "") -> None:
        findings.append(error("vocabulary", VOCABULARY, message, row=row))

    vocabulary = _Vocabulary()
    try:
        table = pd.read_csv(task / VOCABULARY)
        rows = list(_csv_rows((task / VOCABULARY).read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as problem:
        report(f"it cannot be read: {getattr(problem, 'strerror', None) or problem}")
        return vocabulary
    if not {"idx", "label"} <= set(table.columns):
        report(f"its header must be idx,label, not {','.join(map(str, table.columns))}", "line 1")
        return vocabulary
    if len(rows) != len(table):
        report(f"pandas, as the kit uses it, finds {len(table)} rows in it, not {len(rows)}")
    if sorted(table["idx"].tolist()) != list(range(len(table))):
        report(f"its `idx` must be 0 to {len(table) - 1}, each once")
    labels = ["" if pd.isna(label) else str(label) for label in table["label"].astype(str)]
    for (line, text), read in zip(rows, labels, strict=False):
        if not text.strip():
            report("the label is empty", f"line {line}")
        elif read != text:
            vocabulary.changed[text] = (read, f"line {line}")
    for label, count in Counter(labels).items():
        if label and count > 1:
            report(f"the label {label!r} is there {count} times")
    vocabulary.known = set(labels) - {""}
    vocabulary.readable = True
    return vocabulary


def _csv_rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, label) of the rows after the header; empty lines are skipped."""
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        yield reader.line_num, row.get("label") or ""


def _unknown_label(split: str, name: str, label: Any, vocabulary: _Vocabulary) -> Finding:
    changed = vocabulary.changed.get(str(label))
    why = f": pandas reads it as {_spell(changed[0])}" if changed else ""
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
        else:
            yield event["label"], ""


def _check_splits(
    metadata: Mapping[str, Any], splits: Splits, used: Mapping[str, set[str]], known: set[str]
) -> list[Finding]:
    findings = []
    owner: dict[str, str] = {}
    event = metadata.get("embedding_type") == "event"
    for split, rows in splits.items():
        file = f"{split}.json"
        if not rows:
            findings.append(error("empty split", file, "the split has no files"))
        elif not used[split]:
            what = "events" if event else "labels"
            findings.append(error("empty split", file, f"no file of the split has {what}"))
        else:
            findings += _check_classes(metadata, split, used[split], known)
        for name in rows:
            if owner.setdefault(name, split) != split:
                findings.append(warning("file twice", file, f"it is in {owner[name]}.json, too", row=name))
    return findings


def _check_classes(
    metadata: Mapping[str, Any], split: str, used: set[str], known: set[str]
) -> Iterator[Finding]:
    """Find a split with one class, and classes that a scored split lacks if the metric needs them."""
    file = f"{split}.json"
    absent = sorted(known - used)
    metric = str((metadata.get("evaluation") or [""])[0])
    if absent and len(used) == 1:
        yield warning("one class", file, f"all its labels are {min(used)!r}")
    if not absent or split == "train":
        return
    which = f"{len(absent)} of {len(known)} classes are absent, such as {absent[0]!r}"
    if metric in ("aucroc", "d_prime"):
        message = f"{which}: {metric} is not a number for them, which stops the training or fails the task"
        yield error("absent class", file, message)
    elif metric == "mAP":
        yield warning("absent class", file, f"{which}: current scikit-learn counts them as 0 in mAP")


def _check_last_batch(metadata: Mapping[str, Any], splits: Splits) -> list[Finding]:
    """Find a training set whose last batch has one row, which the kit's batch normalization refuses."""
    if (
        metadata.get("embedding_type") == "event"
    ):  # its rows are timestamps: their number depends on the model
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
