"""Data sets of the Hugging Face hub: their Parquet files, listed over the network, fetched by the workers.

Footers are read through ``HfFileSystem``; a worker fetches the files of its part into the hub's own cache. No
code of a data set runs, and nothing is decoded by another library.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from hear_m2d.pretrain.data.sources.base import Source, one_line
from hear_m2d.pretrain.data.sources.parquet import Table, tables_source
from hear_m2d.utils.errors import InputError, WorkFailedError, unknown_name

_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^/:]+))?(/(?P<config>[^:]+))?(:(?P<split>.+))?"
)
# Words for splits in file names, as the hub uses them.
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test",
}  # fmt: skip
_CONVERTED = (
    "refs/convert/parquet"  # where the hub converts data sets of other formats to CONFIG/SPLIT/*.parquet
)


def hub_source(address: str) -> Source:
    """List a data set of the hub.

    Args:
        address: ``hf://datasets/owner/name[@revision][/config][:split]``; without a split, every split.

    Raises:
        InputError: It is not such an address, does not exist, or holds no Parquet files with audio.
        ConnectionError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, HfFileSystem

    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(
            f"{address} is not the address of a data set: expected "
            f"hf://datasets/owner/name[@revision][/config][:split]"
        )
    parts = {key: unquote(value) if value else None for key, value in found.groupdict().items()}
    repo = str(parts["repo"])
    try:
        info = HfApi().dataset_info(repo, revision=parts["revision"])
        files = _parquet_files(info)
        if not files and parts["revision"] is None:
            info = HfApi().dataset_info(repo, revision=_CONVERTED)
            files = _parquet_files(info)
        configs = list(info.card_data.get("configs") or []) if info.card_data else []
        splits = choose_splits(configs, files, parts["config"], parts["split"], address)
        system = HfFileSystem()
        root = f"datasets/{repo}@{quote(str(info.sha), safe='')}"
        tables = [
            Table(file, split, partial(system.open, f"{root}/{file}", "rb"))
            for split, names in splits.items()
            for file in names
        ]
        return tables_source(
            "hub", address, tables, fetch=partial(_fetch, repo, str(info.sha)), files_beside=False
        )
    except _client_errors() as error:
        if getattr(error, "response", None) is None:
            raise ConnectionError(f"{address} cannot be reached: {one_line(error)}") from error
        raise InputError(f"{address} cannot be loaded: {one_line(error)}") from error


def choose_splits(
    configs: Sequence[dict[str, Any]],
    files: Sequence[str],
    config: str | None,
    split: str | None,
    address: str,
) -> dict[str, list[str]]:
    """Return the Parquet files of each wanted split.

    Args:
        configs: As the data set's card lists them: ``config_name`` and ``data_files`` or ``data_dir``.
        files: Every Parquet file of the repository.
        config: Name of the wanted configuration; without cards, a folder.
        split: Name of the wanted split; None: all of them.
        address: For errors.

    Raises:
        InputError: There is no such configuration, split or file, or one of several must be chosen.
    """
    named = {str(one.get("config_name")): one for one in configs}
    folders = sorted({file.partition("/")[0] for file in files if file.count("/") > 1})
    if named:
        default = next((name for name, one in named.items() if one.get("default")), None)
        config = config or default or ("default" if "default" in named else None)
        if config is None and len(named) > 1:
            raise InputError(
                f"{address} has several configurations: {', '.join(named)}. Add one: {address}/NAME"
            )
        config = config or next(iter(named))
        if config not in named:
            raise InputError(f"{address}: {unknown_name('configuration', config, named)}")
        found = dict(_listed(named[config], files))
    elif config is not None:
        found = _by_names([file for file in files if file.startswith(f"{config}/")])
        if not found:
            raise InputError(f"{address}: {unknown_name('configuration', config, folders)}")
    else:
        found = _by_names(files)
    if not any(found.values()):
        raise InputError(f"{address} holds no Parquet files")
    if split is not None:
        if split not in found:
            raise InputError(f"{address} cannot be loaded: {unknown_name('split', split, found)}")
        found = {split: found[split]}
    return found


def _listed(config: dict[str, Any], files: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the splits of a configuration of the card."""
    entries = config.get("data_files")
    if not entries:
        folder = str(config.get("data_dir") or "").strip("/")
        yield from _by_names(
            [file for file in files if file.startswith(f"{folder}/" if folder else "")]
        ).items()
        return
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    for entry in entries:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        yield str(entry["split"]), [f for f in files if any(fnmatch.fnmatchcase(f, str(p)) for p in patterns)]


def _by_names(files: Sequence[str]) -> dict[str, list[str]]:
    """Group files by the split that a folder or the name says; without any, they are ``train``."""
    found: dict[str, list[str]] = {}
    for file in files:
        path = PurePosixPath(file)
        words = [*re.split(r"[._ -]", path.stem), *reversed(path.parts[:-1])]
        found.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "train"), []).append(file)
    return found


def _parquet_files(info: Any) -> list[str]:
    return sorted(file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet"))


def _fetch(repo: str, commit: str, file: str) -> str:
    """Return the local path of a file, downloaded into the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repo, file, repo_type="dataset", revision=commit)
    except _client_errors() as error:
        raise WorkFailedError(
            f"{file} of {repo} cannot be fetched from the hub: {one_line(error)}. The same command continues"
        ) from error


def _client_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises: its network library depends on the version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)
