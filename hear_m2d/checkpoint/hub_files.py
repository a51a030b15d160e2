"""``hf://owner/repo[@revision][/file]`` → a file in the hub's own cache, and its errors in sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from hear_m2d.utils.errors import InputError

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = (".safetensors", ".pth")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(rf"(?i:hf)://(?P<repo>{REPO.pattern})(@(?P<revision>[^/]+))?(/(?P<file>[^/].*)?)?")


def fetch_from_hub(address: str) -> Path:
    """Return the file that ``hf://owner/repo[@revision][/file]`` names.

    Without a file it is ``checkpoint.safetensors``, or else the only ``.safetensors`` or ``.pth`` file. A
    revision is a branch, a tag or a commit; a slash in it is written ``%2F``.

    Raises:
        ValueError: Not such an address, or several files to choose from.
        FileNotFoundError: No such repository, revision or file, or not in the cache while offline.
        PermissionError: A repository that must be asked for.
        ConnectionError: The hub cannot be reached.
    """
    found = ADDRESS.fullmatch(address)
    if not found:
        raise InputError(
            f"{address} is not an address on the hub: write hf://OWNER/REPO or hf://OWNER/REPO/FILE"
        )
    revision = unquote(found["revision"]) if found["revision"] else None
    return hub_file(found["repo"], found["file"], revision=revision)


def hub_file(repo: str, file: str | None = None, *, revision: str | None = None, **how: Any) -> Path:
    """Return a file of a repository: see :func:`fetch_from_hub`.

    Args:
        repo: ``owner/repo``.
        file: Its path there; None: the checkpoint.
        revision: Branch, tag or commit; None: main.
        how: ``token``, ``cache_dir``, ``force_download``, ``local_files_only``, as huggingface_hub has them.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_errors(repo, file, revision, offline=bool(how.get("local_files_only"))):
        try:
            return Path(hf_hub_download(repo, file or CHECKPOINT, revision=revision, **how))
        except EntryNotFoundError:
            if file:
                raise
            only = _only_weights(repo, revision, how)
        return Path(hf_hub_download(repo, only, revision=revision, **how))


def _only_weights(repo: str, revision: str | None, how: dict[str, Any]) -> str:
    listed = _file_names(repo, revision, how)
    names = sorted(name for name in listed if name.lower().endswith(WEIGHTS) and ".." not in name.split("/"))
    if not names:
        raise FileNotFoundError(
            f"{repo} on the hub holds no {CHECKPOINT}, and no other .safetensors or .pth file"
        )
    if len(names) > 1:
        raise InputError(
            f"{repo} on the hub holds several files: {', '.join(names)}. Say which: hf://{repo}/{names[0]}"
        )
    return names[0]


def _file_names(repo: str, revision: str | None, how: dict[str, Any]) -> list[str]:
    """Return what a repository holds; where the hub is out of reach, what the cache holds of it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if not how.get("local_files_only"):
        try:
            return list(HfApi(token=how.get("token")).list_repo_files(repo, revision=revision))
        except HfHubHTTPError:
            raise  # the hub was reached, and refuses
        except Exception as error:
            # Offline mode, or no network: which exception depends on the client of this huggingface_hub.
            logger.info("the hub cannot be asked (%s): looking in its cache", type(error).__name__)
    cache = snapshot_download(repo, revision=revision, cache_dir=how.get("cache_dir"), local_files_only=True)
    return [path.relative_to(cache).as_posix() for path in Path(cache).rglob("*") if path.is_file()]


@contextmanager
def hub_errors(
    repo: str, file: str | None = None, revision: str | None = None, *, offline: bool = False
) -> Iterator[None]:
    """Turn what huggingface_hub raises into sentences that name the repository and what to do."""
    from huggingface_hub import constants, errors

    what = f"{repo}{f' at {revision}' if revision else ''}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{what} on the hub is gated: ask for access at {constants.ENDPOINT}/{repo}, then log in "
            "(hf auth login)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no {repo} on the hub, or it is private: check the spelling, or log in (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} on the hub has no branch, tag or commit {revision}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        at = f"@{quote(revision, safe='')}" if revision else ""
        wanted = f"hf://{repo}{at}{f'/{file}' if file else ''}"
        if offline or constants.HF_HUB_OFFLINE:
            way = "local_files_only" if offline else "HF_HUB_OFFLINE"
            raise FileNotFoundError(
                f"{wanted} is not in the hub's cache, and {way} is set: leave it out once, to download"
            ) from error
        raise ConnectionError(
            f"the hub {constants.ENDPOINT} cannot be reached, and {wanted} is not in its cache: check the "
            "network"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{what} on the hub holds no file {file or CHECKPOINT}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"the hub refuses {what} ({status}): log in with a token that may do this (hf auth login)"
            ) from error
        raise ConnectionError(f"the hub answered {status} for {what}: {_first_line(error)}") from error
    except (ValueError, FileNotFoundError):
        raise  # sentences already: ours, or about the form of a name
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise OSError(
                f"cannot keep {what} in the hub's cache {constants.HF_HUB_CACHE}: {error.strerror}. "
                "Set HF_HOME to a folder that can be written and has room"
            ) from error
        raise ConnectionError(_unreachable(what, error)) from error
    except Exception as error:
        # The client's own errors (httpx or requests, by version) share no class with Python's.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise ConnectionError(_unreachable(what, error)) from error


def _unreachable(what: str, error: BaseException) -> str:
    from huggingface_hub import constants

    return f"the hub {constants.ENDPOINT} cannot be reached for {what}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
