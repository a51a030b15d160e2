"""Sources of audio: folders, lists, tar archives, Parquet files, data sets of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from hear_m2d.audio.find import AUDIO_SUFFIXES, find_audio, walk
from hear_m2d.pretrain.data.sources.base import Source, require_file
from hear_m2d.pretrain.data.sources.files import files_source, list_source
from hear_m2d.utils.errors import InputError

_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


def open_source(source: str | os.PathLike[str]) -> Source:
    """List a source.

    Args:
        source: A folder with audio files at any depth, or else with ``.tar`` or else with ``.parquet`` files;
            one audio file; a ``.csv`` or ``.tsv`` list; a ``.tar``; a ``.parquet``; a pattern of such files;
            ``hf://datasets/owner/name[@revision][/config][:split]``.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It contains no audio, or is not a supported source.
        ConnectionError: The hub cannot be reached.
    """
    text = os.fspath(source)
    if address := address_of(text):
        if not address.startswith("hf://"):
            raise InputError(
                f"{address} is an address: audio and prepared data are read from a local folder. Copy it "
                f"here first (hf download, rsync, or the tool of your object store)"
            )
        from hear_m2d.pretrain.data.sources.hub import hub_source

        return hub_source(address)
    path = Path(text)
    if not path.exists() and re.search(r"[*?\[]", text):
        root, files = _matches(text)
    elif path.is_dir():
        errors: list[OSError] = []
        found = walk(path, AUDIO_SUFFIXES, errors.append)
        if found:
            names, sizes = map(list, zip(*found, strict=True))
            problems = tuple(
                sorted(
                    (os.path.relpath(e.filename, path) + "/", "unreadable", str(e.strerror)) for e in errors
                )
            )
            return files_source(path, path.resolve().name, "folder", names, sizes, problems=problems)
        root, files = path, _archives(path)
    else:
        require_file(path)
        root, files = path.parent, [path]
    suffix = files[0].suffix.lower()
    if suffix == ".tar":
        from hear_m2d.pretrain.data.sources.tar import tar_source

        return tar_source(files, root, path.name)
    if suffix == ".parquet":
        from hear_m2d.pretrain.data.sources.parquet import parquet_source

        return parquet_source(files, root, path.name)
    if suffix in (".csv", ".tsv"):
        return list_source(path)
    if path.is_file() and suffix in _PACKED:
        raise InputError(f"{path} is compressed: unpack it, and give the folder, or a plain .tar")
    (file,) = find_audio(path)  # raises if the suffix is not that of audio
    return files_source(root, path.name, "folder", [file.name], [file.stat().st_size])


def address_of(source: str | os.PathLike[str]) -> str:
    """Return the address in a text, empty for a path; a Path keeps only one of two slashes."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", os.fspath(source))  # one letter is a drive
    return f"{match[1]}://{match[2]}" if match else ""


def _archives(folder: Path) -> list[Path]:
    """Return the tar or else the Parquet files under a folder that holds no audio files."""
    for suffix in (".tar", ".parquet"):
        if found := walk(folder, frozenset((suffix,))):
            return [folder / name for name, _ in found]
    raise InputError(
        f"{folder} holds no audio: no file ends in {' '.join(sorted(AUDIO_SUFFIXES))}, .tar or .parquet"
    )


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """Return the common folder of a pattern's matches, and the matches, which must be of one kind."""
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207
    suffixes = {path.suffix.lower() for path in files}
    if not files:
        raise FileNotFoundError(f"the pattern {pattern} matches no file")
    if len(suffixes) > 1 or not suffixes <= {".tar", ".parquet"}:
        raise InputError(f"the pattern {pattern} must match .tar files or .parquet files, and no others")
    return Path(os.path.commonpath([path.parent for path in files])), files
