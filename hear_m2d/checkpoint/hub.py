"""Sharing models: save_pretrained, from_pretrained and push_to_hub, by huggingface_hub's mixin.

A model is one ``checkpoint.safetensors`` and a README.md that describes it. What is under the authors'
evaluation licence is not passed on.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub import ModelHubMixin

from hear_m2d.checkpoint.authors import LICENCE, is_authors_licence
from hear_m2d.checkpoint.hub_files import CHECKPOINT, REPO, hub_errors, hub_file
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write_text

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from hear_m2d.model.config import ModelConfig

UNKNOWN = "unknown"  # the licence of a checkpoint that does not say


class SharedModel(ModelHubMixin, library_name="hear-m2d", pipeline_tag="feature-extraction"):
    """What :class:`~hear_m2d.model.hear_model.HearModel` inherits: saving, pushing, loading by name."""

    config: ModelConfig

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an instance without the mixin's copy of the arguments: the checkpoint holds the config."""
        return object.__new__(cls)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Write ``checkpoint.safetensors`` and, where there is none yet, a README.md.

        The mixin's own would also remove a config.json that lies there.

        Args:
            save_directory: The folder; made if it is not there.
            config: Not used: the checkpoint holds its own.
            repo_id: ``owner/repo``, for ``push_to_hub``.
            push_to_hub: Push as well.
            model_card_kwargs: For :func:`hear_m2d.checkpoint.card.model_card`.
            kwargs: For :meth:`push_to_hub`.

        Raises:
            ValueError: The weights are under the authors' evaluation licence.
        """
        _check_may_be_shared(self.config.licence)
        if kwargs and not push_to_hub:
            raise TypeError(f"{', '.join(kwargs)}: known only with push_to_hub=True")
        folder = Path(save_directory)
        self._save_pretrained(folder)
        if not (folder / "README.md").exists():  # somebody may have edited it
            atomic_write_text(
                folder / "README.md", str(self.generate_model_card(**(model_card_kwargs or {})))
            )
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **kwargs)

    def push_to_hub(self, repo_id: str, *, licence: str | None = None, **kwargs: Any) -> str:
        """Upload the checkpoint and its model card to the hub, in one commit.

        Args:
            repo_id: ``owner/repo``; made if it is not there.
            licence: Terms of the weights, written into the checkpoint and the card. Needed where the
                checkpoint says none.
            kwargs: As for huggingface_hub's ``ModelHubMixin.push_to_hub``: ``private``, ``token``, …

        Returns:
            The address of what was pushed.

        Raises:
            ValueError: No licence, the authors' evaluation licence, or not ``owner/repo``.
            PermissionError: Not logged in, or not allowed.
            ConnectionError: The hub cannot be reached.
        """
        _check_may_be_shared(self.config.licence)
        licence = " ".join((licence or self.config.licence).split())
        _check_may_be_shared(licence)
        if licence.lower() in ("", UNKNOWN):
            raise InputError(
                "the checkpoint does not say its licence, and nobody may use what is published without one: "
                'say it, push_to_hub(…, licence="apache-2.0")'
            )
        if not REPO.fullmatch(repo_id):
            raise InputError(f"{repo_id} is not a name on the hub: write OWNER/REPO")
        model = copy.copy(self)  # shares the weights; the model at hand keeps its config
        model.config = replace(self.config, licence=licence)
        with hub_errors(repo_id, revision=kwargs.get("branch")):
            card = {"name": repo_id, **(kwargs.pop("model_card_kwargs", None) or {})}
            return ModelHubMixin.push_to_hub(model, repo_id, model_card_kwargs=card, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model, in eval mode, on the CPU.

        The mixin's own would first ask for a config.json, which the checkpoint makes needless.

        Args:
            pretrained_model_name_or_path: ``owner/repo`` on the hub, a folder of :meth:`save_pretrained`, or
                whatever ``load_model`` takes.
            force_download: Download even what the hub's cache holds.
            token: For private repositories.
            cache_dir: In the place of the hub's cache.
            local_files_only: Do not ask the hub.
            revision: Branch, tag or commit.
            options: See :class:`hear_m2d.model.config.Options`.

        Raises:
            FileNotFoundError: No such repository, folder or file.
            ValueError: Not a checkpoint, or an unknown option.
        """
        return cls._from_pretrained(
            model_id=os.fspath(pretrained_model_name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            **options,
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | os.PathLike[str] | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> Self:
        from hear_m2d import load_model

        where: str | Path = model_id
        if (Path(model_id) / CHECKPOINT).is_file():
            where = Path(model_id) / CHECKPOINT
        elif REPO.fullmatch(model_id) and not Path(model_id).exists():
            where = hub_file(
                model_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return load_model(where, **options)  # type: ignore[return-value]

    def _save_pretrained(self, save_directory: Path) -> None:
        from hear_m2d.checkpoint.format import save_checkpoint
        from hear_m2d.model.hear_model import HearModel

        assert isinstance(self, HearModel)
        save_checkpoint(save_directory / CHECKPOINT, self)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the README.md of the model: see :func:`hear_m2d.checkpoint.card.model_card`."""
        from hear_m2d.checkpoint.card import model_card

        return model_card(self.config, *args, **kwargs)


def _check_may_be_shared(licence: str) -> None:
    if is_authors_licence(licence):
        raise InputError(
            f"this model is under the {LICENCE}, which does not allow passing it on: it can neither be "
            "pushed nor saved for sharing. `hear-m2d convert` makes a file for your own use of it"
        )
