"""Labelled audio for probes: HEAR task folders of whole clips, and CSV files with a column of labels."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hear_m2d.evaluation.hear.tasks import METADATA, VOCABULARY, read_task
from hear_m2d.utils.errors import InputError, unknown_name

logger = logging.getLogger(__name__)

Kind = Literal["multiclass", "multilabel"]
Splits = Literal["given", "folds", "ours"]
SPLITS = ("train", "valid", "test")
LABEL_COLUMNS = ("label", "labels")
FILE_COLUMNS = ("file", "file_name", "path")
# Where nobody gave splits: three of five clips of a class train, one chooses C, one is the test.
OUR_PATTERN = ("train", "test", "valid", "train", "train")


@dataclass(frozen=True)
class Clip:
    """One labelled file.

    Attributes:
        name: Its name in the set.
        path: Where it lies.
        labels: Its classes: one, or any number where the set is multilabel.
        split: ``train``, ``valid``, ``test``, or a fold.
    """

    name: str
    path: Path
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class LabelledSet:
    """Clips with labels, and how they are split.

    Attributes:
        name: Of the folder or file.
        kind: One class a clip, or any number.
        classes: In their order.
        clips: In their order.
        splits: ``given`` train, valid and test; ``folds``; or train, valid and test that are ``ours``.
        total: Clips before any were left out.
        notes: Sentences on what was decided here.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    splits: Splits
    total: int
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """What the probes report."""
        return "accuracy" if self.kind == "multiclass" else "mAP"

    @property
    def folds(self) -> list[str]:
        """The names of the splits that have clips, sorted."""
        return sorted({clip.split for clip in self.clips})

    def limited(self, clips: int) -> LabelledSet:
        """Return the set with at most so many clips: of each split and class its share.

        Raises:
            ValueError: So few are left that nothing can be learned or tested.
        """
        if clips >= len(self.clips):
            return self
        kept = set(spread_by_class(self.clips)[:clips])
        chosen = tuple(clip for clip in self.clips if clip in kept)
        note = f"{clips} of {self.total} clips"
        found = replace(self, clips=chosen, notes=(*self.notes, note))
        _check(found, f"{self.name}, cut to {clips} clips,")
        return found


def spread_by_class(clips: Iterable[Clip]) -> list[Clip]:
    """Order clips so that the first n hold each split and class in its share; by names, not by chance."""
    groups: dict[tuple[str, tuple[str, ...]], list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=_mixed):
        groups[clip.split, clip.labels].append(clip)
    places = [
        ((rank + 0.5) / len(group), _mixed(clip), clip)
        for group in groups.values()
        for rank, clip in enumerate(group)
    ]
    return [clip for _, _, clip in sorted(places, key=lambda place: place[:2])]


def split_by_class(clips: Sequence[Clip], pattern: Sequence[str] = OUR_PATTERN) -> list[Clip]:
    """Give each clip a split, class by class, in turns; the same splits each time, whatever the order."""
    turn: dict[tuple[str, ...], int] = defaultdict(int)
    found = {}
    for clip in sorted(clips, key=_mixed):
        found[clip] = replace(clip, split=pattern[turn[clip.labels] % len(pattern)])
        turn[clip.labels] += 1
    return [found[clip] for clip in clips]


def _mixed(clip: Clip) -> str:
    return hashlib.sha256(clip.name.encode(errors="surrogateescape")).hexdigest() + clip.name


def read_labelled(place: Path, sample_rate: int) -> LabelledSet:
    """Read a HEAR task folder, or a CSV with the columns ``file``, ``label`` and perhaps ``split``.

    Args:
        place: The folder, or the file.
        sample_rate: Of the model, hertz: of a task's audio folders the one that needs no resampling is taken.

    Raises:
        FileNotFoundError: There is no such thing, or not all of its audio.
        ValueError: It is not what it should be, or a task of events.
    """
    if not place.exists():
        raise FileNotFoundError(f"there is no {place}: give a HEAR task folder, or a CSV of files and labels")
    found = _read_folder(place, sample_rate) if place.is_dir() else _read_csv(place)
    if missing := [clip.path for clip in found.clips if not clip.path.is_file()]:
        raise FileNotFoundError(f"{place} names {len(missing)} files that are not there, first {missing[0]}")
    _check(found, place)
    return found


def _check(found: LabelledSet, place: object) -> None:
    """Raise where a set cannot train and test a classifier."""
    if found.splits == "folds":
        if len(found.folds) < 3:
            raise InputError(f"{place} has {len(found.folds)} folds with clips: a probe needs at least 3")
        return
    for split in ("train", "test"):
        own = [clip for clip in found.clips if clip.split == split]
        if not own:
            raise InputError(
                f"{place} has no clip to {split}; its splits are {', '.join(found.folds) or 'empty'}. "
                f"Splits are called train, valid and test, or there are at least 3 folds"
            )
        if split == "train" and len({clip.labels for clip in own}) < 2:
            raise InputError(f"the clips to train of {place} are all of one class: there is nothing to learn")


def _read_folder(folder: Path, sample_rate: int) -> LabelledSet:
    if not (folder / METADATA).is_file():
        raise InputError(
            f"{folder} is no HEAR task: it has no {METADATA}. Give the task's own folder, or a CSV of files "
            f"and labels"
        )
    task = read_task(folder)
    facts = json.loads((folder / METADATA).read_text())
    if facts.get("embedding_type") != "scene":
        raise InputError(
            f"{folder} is a task of events (its embedding_type is {facts.get('embedding_type')!r}), and "
            f"probes score whole clips: give a scene task"
        )
    kind = facts.get("prediction_type")
    if kind not in ("multiclass", "multilabel"):
        raise InputError(f"{folder / METADATA}: prediction_type is {kind!r}, not multiclass or multilabel")
    rates = task.rates()
    if not rates:
        raise InputError(f"{folder} has no folder of audio (such as 16000/) with all of its splits")
    rate = sample_rate if sample_rate in rates else max(rates)
    if rate != sample_rate:
        logger.info("%s has no audio at %d Hz: that at %d Hz is resampled", folder, sample_rate, rate)
    classes = _vocabulary(folder / VOCABULARY)
    clips = []
    for split in task.splits:
        for name, labels in _listing(folder / f"{split}.json").items():
            clips.append(Clip(name, folder / str(rate) / split / name, labels, split))
            if wrong := [label for label in labels if label not in classes]:
                raise InputError(f"{folder / split}.json: {name}: {unknown_name('label', wrong[0], classes)}")
            if kind == "multiclass" and len(labels) != 1:
                raise InputError(
                    f"{folder / split}.json gives {name} {len(labels)} labels; a multiclass clip has one"
                )
    mode: Splits = "given" if facts.get("split_mode") == "trainvaltest" else "folds"
    return LabelledSet(folder.resolve().name, kind, classes, tuple(clips), mode, len(clips))


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(int(row["idx"]), row["label"]) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no vocabulary with the columns idx and label: {error!r}") from error
    return tuple(label for _, label in sorted(rows))


def _listing(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        listing: Any = json.loads(path.read_text())
        if not isinstance(listing, dict) or not all(isinstance(value, list) for value in listing.values()):
            raise InputError("it is no JSON object with a list of labels for each file")
    except ValueError as error:
        raise InputError(f"{path} is no HEAR listing: {error}") from error
    return {name: tuple(map(str, labels)) for name, labels in listing.items()}


def _read_csv(path: Path) -> LabelledSet:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV of files and labels: {error}") from error
    named = next((name for name in FILE_COLUMNS if name in columns), None)
    told = next((name for name in LABEL_COLUMNS if name in columns), None)
    if named is None or told is None:
        raise InputError(f"{path} has the columns {', '.join(columns)}; it needs file and label")
    kind: Kind = "multilabel" if any("," in (row[told] or "") for row in rows) else "multiclass"
    clips, seen = [], set()
    for line, row in enumerate(rows, start=2):
        name = row[named]
        labels = tuple(sorted({part.strip() for part in (row[told] or "").split(",")} - {""}))
        if not name or name in seen:
            raise InputError(f"{path}, line {line}: " + (f"{name} again" if name else "no file is named"))
        if kind == "multiclass" and not labels:
            raise InputError(
                f"{path}, line {line}: {name} has no label; only sets with several labels a clip, separated "
                f"by commas, may leave it empty"
            )
        seen.add(name)
        clips.append(Clip(name, path.parent / name, labels, (row.get("split") or "").strip()))
    classes = tuple(sorted({label for clip in clips for label in clip.labels}))
    notes: tuple[str, ...] = ()
    splits = {clip.split for clip in clips}
    mode: Splits = "given" if splits <= set(SPLITS) else "folds"
    if "split" not in columns:
        clips, mode = split_by_class(clips), "ours"
        notes = ("splits are ours, 3:1:1 in each class, by the files' names",)
    elif without := [clip.name for clip in clips if not clip.split]:
        raise InputError(f"{path}: {without[0]} has no split, and others have")
    elif mode == "folds" and splits & set(SPLITS):
        raise InputError(
            f"{path} has the splits {', '.join(sorted(splits))}: call them train, valid and test, or all of "
            f"them something else, for folds"
        )
    return LabelledSet(path.stem, kind, classes, tuple(clips), mode, len(clips), notes)
