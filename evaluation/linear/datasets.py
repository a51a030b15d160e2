"""Labeled audio: HEAR task folders of whole clips, and CSV files with a column of labels."""

from __future__ import annotations

import csv
import hashlib
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hear_m2d.evaluation.archives.folder import METADATA, VOCABULARY, rate_folders, read_task
from hear_m2d.utils.errors import InputError, unknown_name
from hear_m2d.utils.listing import read_list, split_labels

logger = logging.getLogger(__name__)

Kind = Literal["multiclass", "multilabel"]
Splits = Literal["given", "folds", "ours"]
SPLITS = ("train", "valid", "test")
MIN_FOLDS = 3
# Splits of a set without its own: of five clips of a class, three train, one validates, one tests.
OUR_PATTERN = ("train", "test", "valid", "train", "train")


@dataclass(frozen=True)
class Clip:
    """One labeled file.

    Attributes:
        name: Its name in the set.
        path: The file.
        labels: Its classes: one, or any number where the set is multilabel.
        split: ``train``, ``valid``, ``test``, or the name of a fold.
    """

    name: str
    path: Path
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class LabeledSet:
    """Clips with labels, and how they are split.

    Attributes:
        name: Of the folder, the file or the data set.
        kind: One class per clip, or any number.
        classes: Class names, in the order of the labels.
        clips: All clips of the set.
        splits: ``given`` (train, valid and test), ``folds``, or ``ours`` (train, valid and test made here).
        total: Clips before some were left out.
        notes: Sentences about decisions made here.
        unit_s: Seconds that every clip is cut or padded to; None takes whole clips.
        published: Name of the data set in the papers' tables; empty for any other set.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    splits: Splits
    total: int
    notes: tuple[str, ...] = ()
    unit_s: float | None = None
    published: str = ""

    @property
    def metric(self) -> str:
        """The score that is reported: ``accuracy`` or ``mAP``."""
        return "accuracy" if self.kind == "multiclass" else "mAP"

    @property
    def folds(self) -> list[str]:
        """The names of the splits that have clips, sorted."""
        return sorted({clip.split for clip in self.clips})

    def limited(self, clips: int) -> LabeledSet:
        """Return the set with at most ``clips`` clips: each split and class keeps its share.

        Raises:
            InputError: Too few are left to train or to test.
        """
        if clips >= len(self.clips):
            return self
        kept = set(spread_by_class(self.clips)[:clips])
        chosen = tuple(clip for clip in self.clips if clip in kept)
        limited = replace(self, clips=chosen, notes=(*self.notes, f"{clips} of {self.total} clips"))
        check_set(limited, f"{self.name}, cut to {clips} clips,")
        return limited


def spread_by_class(clips: Iterable[Clip]) -> list[Clip]:
    """Order clips so that the first n hold each split and class in its share; a function of their names."""
    groups: dict[tuple[str, tuple[str, ...]], list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=_shuffled):
        groups[clip.split, clip.labels].append(clip)
    ranked = [
        ((rank + 0.5) / len(group), _shuffled(clip), clip)
        for group in groups.values()
        for rank, clip in enumerate(group)
    ]
    return [clip for _, _, clip in sorted(ranked, key=lambda entry: entry[:2])]


def split_by_class(clips: Sequence[Clip], pattern: Sequence[str] = OUR_PATTERN) -> list[Clip]:
    """Give each clip a split, class by class, in turns; the order of the clips does not matter."""
    turn: dict[tuple[str, ...], int] = defaultdict(int)
    split = {}
    for clip in sorted(clips, key=_shuffled):
        split[clip] = replace(clip, split=pattern[turn[clip.labels] % len(pattern)])
        turn[clip.labels] += 1
    return [split[clip] for clip in clips]


def _shuffled(clip: Clip) -> str:
    return hashlib.sha256(clip.name.encode(errors="surrogateescape")).hexdigest() + clip.name


def read_labeled(path: Path, sample_rate: int) -> LabeledSet:
    """Read a HEAR task folder, or a CSV with columns ``file``, ``label`` and perhaps ``split`` or ``fold``.

    Args:
        path: The folder, or the file.
        sample_rate: Of the model, hertz: a task's audio at this rate is preferred.

    Raises:
        FileNotFoundError: The path, or a part of the audio, does not exist.
        InputError: The folder or the file is malformed, or it is a task of events.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: give a HEAR task folder, or a CSV of files and labels")
    labeled = _read_folder(path, sample_rate) if path.is_dir() else read_csv(path)
    return checked(labeled, path)


def checked(labeled: LabeledSet, source: object) -> LabeledSet:
    """Return the set if its audio exists and its splits can train and test a classifier.

    Args:
        labeled: The set.
        source: Its name in errors.

    Raises:
        FileNotFoundError: A part of the audio does not exist.
        InputError: A split is missing, or there is only one class.
    """
    if missing := [clip.path for clip in labeled.clips if not clip.path.is_file()]:
        raise FileNotFoundError(f"{source} names {len(missing)} files that do not exist, first {missing[0]}")
    check_set(labeled, source)
    return labeled


def check_set(labeled: LabeledSet, source: object) -> None:
    """Raise an InputError where a set cannot train and test a classifier."""
    if labeled.splits == "folds":
        if len(labeled.folds) < MIN_FOLDS:
            raise InputError(
                f"{source} has {len(labeled.folds)} folds with clips; at least {MIN_FOLDS} are needed"
            )
        for fold in labeled.folds:
            others = {clip.labels for clip in labeled.clips if clip.split != fold}
            if len(others) < 2:
                raise InputError(f"without fold {fold}, all clips of {source} have the same class")
        return
    for split in ("train", "test"):
        own = [clip for clip in labeled.clips if clip.split == split]
        if not own:
            raise InputError(
                f"{source} has no {split} clips; its splits are {', '.join(labeled.folds) or 'empty'}. "
                f"Splits must be named train, valid and test, or there must be at least {MIN_FOLDS} folds"
            )
        if split == "train" and len({clip.labels for clip in own}) < 2:
            raise InputError(f"the training clips of {source} all have the same class")


def _read_folder(folder: Path, sample_rate: int) -> LabeledSet:
    if not (folder / METADATA).is_file():
        raise InputError(
            f"{folder} is not a HEAR task: it has no {METADATA}. Give the task's own folder, or a CSV of "
            f"files and labels"
        )
    task = read_task(folder)
    metadata = task.metadata
    if metadata.get("embedding_type") != "scene":
        raise InputError(
            f"{folder} is a task of events (its embedding_type is {metadata.get('embedding_type')!r}); only "
            f"tasks of whole clips (scene) can be used"
        )
    kind = metadata.get("prediction_type")
    if kind not in ("multiclass", "multilabel"):
        raise InputError(f"{folder / METADATA}: prediction_type is {kind!r}, not multiclass or multilabel")
    rates = task.complete_rates() or rate_folders(folder)  # with the second, the missing files are named
    if not rates:
        raise InputError(f"{folder} has no folder of audio, such as 16000/")
    rate = sample_rate if sample_rate in rates else max(rates)
    if rate != sample_rate:
        logger.info("%s has no audio at %d Hz: its audio at %d Hz is resampled", folder, sample_rate, rate)
    classes = _vocabulary(folder / VOCABULARY)
    clips = []
    for split, files in task.splits.items():
        source = folder / f"{split}.json"
        for name, listed in files.items():
            if not isinstance(listed, list):
                raise InputError(f"{source}: the labels of {name} must be a list, not {listed!r}")
            labels = tuple(normalized(str(label)) for label in listed)
            clips.append(Clip(name, folder / str(rate) / split / name, labels, split))
            if wrong := [label for label in labels if label not in classes]:
                raise InputError(f"{source}: {name}: {unknown_name('label', wrong[0], classes)}")
            if kind == "multiclass" and len(labels) != 1:
                raise InputError(f"{source} gives {name} {len(labels)} labels; a multiclass clip has one")
    mode: Splits = "given" if metadata.get("split_mode") == "trainvaltest" else "folds"
    return LabeledSet(task.name, kind, classes, tuple(clips), mode, len(clips))


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(int(row["idx"]), normalized(row["label"])) for row in csv.DictReader(file)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (UTF-8)") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a vocabulary with the columns idx and label: {error!r}") from error
    if not rows:
        raise InputError(f"{path} lists no label: it must have the columns idx and label")
    return tuple(label for _, label in sorted(rows))


def normalized(text: str) -> str:
    """Return text in Unicode normal form C, so that two spellings of a letter are one."""
    return unicodedata.normalize("NFC", text).strip()


def read_csv(path: Path) -> LabeledSet:
    """Read a CSV with the columns ``file``, ``label`` (or ``labels``) and perhaps ``split`` or ``fold``.

    Raises:
        InputError: A column is missing, or a row cannot be used.
    """
    listed = read_list(path)
    if listed.label_column is None:
        raise InputError(f"{path} has the columns {', '.join(listed.columns)}; it needs file and label")
    split = next((name for name in ("split", "fold") if name in listed.columns), None)
    clips, seen = [], set()
    for row in listed.rows:
        if not row.file or row.file in seen:
            raise InputError(
                f"{path}, line {row.line}: " + (f"{row.file} is repeated" if row.file else "no file is named")
            )
        seen.add(row.file)
        labels = tuple(sorted(set(split_labels(row.label))))
        clips.append(
            Clip(row.file, path.parent / row.file, labels, row.cells[split].strip() if split else "")
        )
    kind: Kind = "multilabel" if any(len(clip.labels) > 1 for clip in clips) else "multiclass"
    if kind == "multiclass" and (without := [clip.name for clip in clips if not clip.labels]):
        raise InputError(
            f"{path}: {without[0]} has no label; only in a list with several labels per clip, separated by "
            f"commas, may a cell be empty"
        )
    return split_set(clips, kind, name=path.stem, source=path, split=split)


def split_set(
    clips: Sequence[Clip],
    kind: Kind,
    *,
    name: str,
    source: object,
    split: str | None,
    notes: Sequence[str] = (),
    **fields: Any,
) -> LabeledSet:
    """Return a set of clips whose ``split`` fields come from a column.

    Args:
        clips: With their labels.
        kind: One class per clip, or any number.
        name: Of the set.
        source: Its name in errors.
        split: Name of the column, ``fold`` for folds of any name; None makes the splits here.
        notes: Sentences about decisions.
        fields: Other fields of :class:`LabeledSet`.

    Raises:
        InputError: A clip has no split, or splits and folds are mixed.
    """
    mode = _split_mode(clips, split, source)
    if mode == "ours":
        clips = split_by_class(clips)
        notes = (*notes, "splits are ours, 3:1:1 in each class, by the files' names")
    classes = tuple(sorted({label for clip in clips for label in clip.labels}))
    settings: Mapping[str, Any] = fields
    return LabeledSet(name, kind, classes, tuple(clips), mode, len(clips), tuple(notes), **settings)


def _split_mode(clips: Sequence[Clip], column: str | None, source: object) -> Splits:
    if column is None:
        return "ours" if clips else "given"
    if without := [clip.name for clip in clips if not clip.split]:
        raise InputError(f"{source}: {without[0]} has no {column}, and others have")
    splits = {clip.split for clip in clips}
    if column == "fold" or not splits & set(SPLITS):
        return "folds"
    if splits <= set(SPLITS):
        return "given"
    raise InputError(
        f"{source} has the splits {', '.join(sorted(splits))}: name them train, valid and test, or "
        f"all of them as folds"
    )
