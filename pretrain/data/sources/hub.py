"""Data sets of the Hugging Face hub: their Parquet files, listed over the network, fetched by the workers.

Footers are read through ``HfFileSystem``; a worker fetches the files of its part into the hub's own cache. No
code of a data set runs, and nothing is decoded by another library.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from hear_m2d.pretrain.data.sources.base import Source, one_line
from hear_m2d.pretrain.data.sources.parquet import Table, tables_source
from hear_m2d.utils.errors import InputError, WorkFailedError, unknown_name

_FORM = "hf://datasets/owner/name[@revision][/config][:split]"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^/:]+))?(/(?P<config>[^:]+))?(:(?P<split>.+))?"
)
# Words for splits in file names, as the hub uses them.
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test",
}  # fmt: skip
_CONVERTED = "refs/convert/parquet"  # where the hub keeps other formats as CONFIG/SPLIT/*.parquet


def hub_source(address: str) -> Source:
    """List a data set of the hub, ``hf://datasets/owner/name[@revision][/config][:split]``.

    Raises:
        InputError: It is not such an address, does not exist, or holds no Parquet files with audio.
        ConnectionError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, HfFileSystem

    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f"{address} is not the address of a data set: expected {_FORM}")
    repo, revision, config, split = (
        unquote(match[name]) if match[name] else None for name in ("repo", "revision", "config", "split")
    )
    try:
        info = HfApi().dataset_info(str(repo), revision=revision)
        files = _parquet_files(info)
        if not files and revision is None:
            info = HfApi().dataset_info(str(repo), revision=_CONVERTED)
            files = _parquet_files(info)
        configs = list(info.card_data.get("configs") or []) if info.card_data else []
        splits = choose_splits(configs, files, config, split, address)
        root = f"datasets/{repo}@{quote(str(info.sha), safe='')}"
        tables = [
            Table(file, split, partial(HfFileSystem().open, f"{root}/{file}", "rb"))
            for split, names in splits.items()
            for file in names
        ]
        fetch = partial(_fetch, str(repo), str(info.sha))
        return tables_source("hub", address, tables, fetch=fetch, files_beside=False)
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
    """Return the Parquet files of each wanted split; without a ``split``, of every split.

    ``configs`` are those of the data set's card (``config_name`` and ``data_files`` or ``data_dir``). Without
    them, a configuration is a folder.

    Raises:
        InputError: There is no such configuration, split or file, or one of several must be chosen.
    """
    cards = {str(card.get("config_name")): card for card in configs}
    folders = sorted({file.partition("/")[0] for file in files if file.count("/") > 1})
    if cards:
        default = next((name for name, card in cards.items() if card.get("default")), "default")
        config = config or (default if default in cards else None)
        if config is None and len(cards) > 1:
            raise InputError(
                f"{address} has several configurations: {', '.join(cards)}. Add one: {address}/NAME"
            )
        config = config or next(iter(cards))
    exists = config in cards if cards else any(file.startswith(f"{config}/") for file in files)
    if config is not None and not exists:
        raise InputError(f"{address}: {unknown_name('configuration', config, cards or folders)}")
    splits = _splits_of_card(cards[str(config)], files) if cards else _splits_by_name(files, config or "")
    if not any(splits.values()):
        raise InputError(f"{address} holds no Parquet files")
    if split is None:
        return splits
    if split not in splits:
        raise InputError(f"{address} cannot be loaded: {unknown_name('split', split, splits)}")
    return {split: splits[split]}


def _splits_of_card(card: dict[str, Any], files: Sequence[str]) -> dict[str, list[str]]:
    entries = card.get("data_files")
    if not entries:
        return _splits_by_name(files, str(card.get("data_dir") or "").strip("/"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    splits = {}
    for entry in entries:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        matching = [f for f in files if any(fnmatch.fnmatchcase(f, str(pattern)) for pattern in patterns)]
        splits[str(entry["split"])] = matching
    return splits


def _splits_by_name(files: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Group a folder's files by the split in their folders or names; without any, they are ``train``."""
    splits: dict[str, list[str]] = {}
    for file in files:
        if folder and not file.startswith(f"{folder}/"):
            continue
        path = PurePosixPath(file)
        words = [*re.split(r"[._ -]", path.stem), *reversed(path.parts[:-1])]
        split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
        splits.setdefault(split, []).append(file)
    return splits


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
