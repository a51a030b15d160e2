"""Sharing models on the Hugging Face hub: a ``checkpoint.safetensors`` and a README.md that describes it.

Weights under the authors' evaluation license are not shared.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from hear_m2d.checkpoint.card import model_card
from hear_m2d.checkpoint.download import CHECKPOINT, REPO, hub_errors
from hear_m2d.checkpoint.format import model_state, write_model_tensors
from hear_m2d.checkpoint.registry import AUTHORS_LICENSE, is_authors_license
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text


def save_pretrained(
    model: HearModel, folder: str | os.PathLike[str], *, name: str = "", description: str = ""
) -> None:
    """Write ``checkpoint.safetensors`` and, where there is none yet, a README.md.

    Args:
        model: The model.
        folder: Made if it does not exist.
        name: ``owner/repo``, for the line of the README.md that loads it.
        description: Text under the title, in Markdown.

    Raises:
        InputError: The weights are under the authors' evaluation license.
    """
    _write(model, model.config, Path(folder), name, description)


def push_to_hub(
    model: HearModel,
    repo_id: str,
    *,
    license: str = "",
    description: str = "",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = "Upload with hear-m2d",
) -> str:
    """Upload the checkpoint and its model card to the hub, in one commit.

    Args:
        model: The model.
        repo_id: ``owner/repo``; made if it does not exist.
        license: Terms of the weights, written into the checkpoint and the card. Needed if the checkpoint
            does not state them.
        description: Text under the card's title, in Markdown.
        private: Whether a new repository is private; None: the default of the organization.
        token: Used instead of the token that `hf auth login` stored.
        branch: Used instead of main.
        commit_message: First line of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: No license, the authors' evaluation license, or not ``owner/repo``.
        PermissionError: Not logged in, or not allowed.
        ConnectionError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi

    license = " ".join((license or model.config.licence).split())
    if license.lower() in ("", "unknown"):
        raise InputError(
            "the checkpoint does not say its license, and nobody may use what is published without one: "
            'give it, push_to_hub(…, license="apache-2.0")'
        )
    if not REPO.fullmatch(repo_id):
        raise InputError(f"{repo_id} is not a name on the hub: write OWNER/REPO")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, hub_errors(repo_id):
        _write(model, replace(model.config, licence=license), Path(folder), repo_id, description)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=branch, commit_message=commit_message
        )
    return str(commit.commit_url)


def _write(model: HearModel, config: ModelConfig, folder: Path, name: str, description: str) -> None:
    if is_authors_license(model.config.licence) or is_authors_license(config.licence):
        raise InputError(
            f"this model is under the {AUTHORS_LICENSE}, which does not allow passing it on: it can neither "
            "be pushed nor saved for sharing. `hear-m2d convert` makes a file for your own use of it"
        )
    write_model_tensors(folder / CHECKPOINT, model_state(model), config, dtype="float32")
    if not (folder / "README.md").exists():  # a person may have edited it
        atomic_write_text(folder / "README.md", str(model_card(config, name=name, description=description)))
