"""The data sets of the M2D papers' tables, read from their own folders as they are distributed.

ESC-50, UrbanSound8K, Speech Commands V2, VoxCeleb1 and NSynth define their splits in their own files.
CREMA-D, VoxForge, GTZAN and Surge do not: the papers drew or chose splits, which a CSV must give.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hear_m2d.audio import find_audio
from hear_m2d.evaluation.linear.datasets import Clip, LabeledSet, checked, normalized, split_set
from hear_m2d.utils.errors import InputError, unknown_name
from hear_m2d.utils.files import read_json
from hear_m2d.utils.listing import read_list

OWN_SPLIT = (
    "the published split of {title} is a file of the authors; with any other split the score is not "
    "comparable with published figures"
)


@dataclass(frozen=True)
class NamedSet:
    """A data set of the papers, and how its folder is read.

    Attributes:
        title: Its full name.
        unit_s: Seconds that every clip is cut or padded to.
        clips: How many clips the published set has; 0 where that depends on the split file.
        read: Returns the clips of its folder, split as its own files say.
        label: For sets that take a split CSV: the label of a file, given relative to the root.
    """

    title: str
    unit_s: float
    clips: int = 0
    read: Callable[[Path], Iterable[Clip]] | None = None
    label: Callable[[Path], str] | None = None


def read_named(name: str, root: Path, split_csv: Path | None = None) -> LabeledSet:
    """Read a data set by its name in the papers' tables.

    Args:
        name: A key of :data:`SETS`.
        root: Its folder.
        split_csv: For ``cremad``, ``voxforge``, ``gtzan`` and ``surge``: a CSV with the columns ``file`` (a
            file or a folder below the root) and ``split``, perhaps also ``label``. Files without a split are
            left out.

    Raises:
        FileNotFoundError: The folder, or a file of the set, does not exist.
        InputError: An unknown name, another layout than the distributed one, or no split CSV where one is
            needed.
    """
    if name not in SETS:
        raise InputError(unknown_name("data set", name, SETS))
    known = SETS[name]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give the root folder of {known.title}")
    notes = []
    if known.read is not None:
        if split_csv is not None:
            raise InputError(f"{known.title} defines its own split: leave --split-csv out")
        clips = sorted(known.read(root), key=lambda clip: clip.name)
        if known.clips and len(clips) != known.clips:
            notes.append(f"{len(clips)} clips, {known.clips} in the published set: not comparable")
    else:
        if split_csv is None:
            raise InputError(
                f"{known.title} needs --split-csv {name}=FILE: {OWN_SPLIT.format(title=known.title)}"
            )
        clips, dropped = _by_split_csv(known, root, split_csv)
        notes.append(OWN_SPLIT.format(title=known.title))
        if dropped:
            notes.append(f"{dropped} files without a split are left out")
    split = "fold" if name in ("esc50", "us8k") else "split"
    labeled = split_set(clips, "multiclass", name=name, source=root, split=split, notes=notes)
    return checked(replace(labeled, unit_s=known.unit_s, published=name), root)


def _table(root: Path, *names: str) -> Path:
    """Return the first of some files that exists below a root."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(f"{root} has no {names[0]}: give the folder as the data set is distributed")


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Read a CSV file that has a value in each row of some columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    for number, row in enumerate(rows, 2):
        if lacking := [column for column in columns if not row.get(column)]:
            raise InputError(f"{path}, line {number}: nothing is in the column {lacking[0]}")
    return rows


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, with single spaces."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: {error}") from error
    return [" ".join(line.split()) for line in lines if line.strip()]


def _esc50(root: Path) -> Iterable[Clip]:
    for row in _rows(_table(root, "meta/esc50.csv"), "filename", "fold", "category"):
        name = row["filename"]
        yield Clip(name, root / "audio" / name, (normalized(row["category"]),), f"fold{row['fold']}")


def _us8k(root: Path) -> Iterable[Clip]:
    table = _table(root, "metadata/UrbanSound8K.csv")
    for row in _rows(table, "slice_file_name", "fold", "class"):
        fold, name = f"fold{row['fold']}", row["slice_file_name"]
        path = root / "audio" / fold / name
        yield Clip(name, path, (normalized(row["class"]),), f"fold{row['fold']:0>2}")


def _spcv2(root: Path) -> Iterable[Clip]:
    valid, test = (set(_lines(_table(root, name))) for name in ("validation_list.txt", "testing_list.txt"))
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name[:1].islower():  # not _background_noise_
            for path in sorted(folder.glob("*.wav")):
                name = f"{folder.name}/{path.name}"
                split = "valid" if name in valid else "test" if name in test else "train"
                yield Clip(name, path, (folder.name,), split)


def _vc1(root: Path) -> Iterable[Clip]:
    folders = [
        folder for folder in (root, root / "wav", root / "dev/wav", root / "test/wav") if folder.is_dir()
    ]
    speakers: dict[str, Path] = {}
    for folder in folders:
        speakers |= {path.name: path for path in folder.glob("id*") if path.is_dir()}
    splits = {"1": "train", "2": "valid", "3": "test"}
    table = _table(root, "iden_split.txt", "meta/iden_split.txt", "wav/iden_split.txt")
    for line in _lines(table):
        number, _, name = line.partition(" ")
        speaker, _, rest = name.partition("/")
        if number not in splits:
            raise InputError(f"{table} gives {name} the split {number}; it must be 1, 2 or 3")
        yield Clip(name, speakers.get(speaker, root / speaker) / rest, (speaker,), splits[number])


def _nsynth(root: Path) -> Iterable[Clip]:
    for split in ("train", "valid", "test"):
        folder = root / f"nsynth-{split}"
        table = _table(folder, "examples.json")
        for name, note in read_json(table).items():
            if not isinstance(note, dict) or "instrument_family_str" not in note:
                raise InputError(f"{table}: {name} has no instrument_family_str")
            path = folder / "audio" / f"{name}.wav"
            yield Clip(f"{split}/{name}", path, (normalized(str(note["instrument_family_str"])),), split)


def _by_split_csv(known: NamedSet, root: Path, split_csv: Path) -> tuple[list[Clip], int]:
    """Return the clips that a split CSV names, and how many files have no split."""
    listed = read_list(split_csv)
    if "split" not in listed.columns or known.label is None:
        raise InputError(f"{split_csv} has the columns {', '.join(listed.columns)}; it needs file and split")
    clips: dict[str, Clip] = {}
    dropped = 0
    for row in listed.rows:
        path, split = root / row.file, row.cells["split"].strip()
        # Splits of VoxForge are by submission and those of Surge by tone: a folder stands for its files.
        for file in find_audio(path) if path.is_dir() else [path]:
            name = file.relative_to(root).as_posix()
            if not split:
                dropped += 1
                continue
            label = normalized(row.label or known.label(Path(name)))
            if not label:
                raise InputError(f"{split_csv}, line {row.line}: no label for {name}: add a column label")
            clips[name] = Clip(name, file, (label,), split)
    return [clips[name] for name in sorted(clips)], dropped


def _emotion(name: Path) -> str:
    parts = name.stem.split("_")  # 1001_DFA_ANG_XX
    if len(parts) < 3:
        raise InputError(
            f"{name} does not have a CREMA-D name such as 1001_DFA_ANG_XX.wav: add a column label"
        )
    return parts[2]


SETS = {
    "esc50": NamedSet("ESC-50", 5.0, 2000, _esc50),
    "us8k": NamedSet("UrbanSound8K", 4.0, 8732, _us8k),
    "spcv2": NamedSet("Speech Commands V2", 1.0, 105829, _spcv2),
    "vc1": NamedSet("VoxCeleb1", 8.2, 153516, _vc1),
    "nsynth": NamedSet("NSynth", 4.0, 305979, _nsynth),
    "cremad": NamedSet("CREMA-D", 2.5, label=_emotion),
    "gtzan": NamedSet("GTZAN", 30.0, label=lambda name: name.parts[-2] if len(name.parts) > 1 else ""),
    "voxforge": NamedSet("VoxForge", 5.8, label=lambda name: name.parts[0]),
    "surge": NamedSet("Surge", 4.0, label=lambda name: name.stem),
}
