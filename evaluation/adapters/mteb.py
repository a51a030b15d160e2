"""A model for the audio tasks of `mteb` (MAEB), which is imported only when it reads the model's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hear_m2d.checkpoint.build import weights_digest
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.errors import InputError


def mono(array: NDArray[Any] | Tensor | list[float], *, rate: int, sample_rate: int) -> Tensor:
    """Return audio as a model takes it: one channel, at its rate.

    Args:
        array: (samples,) or (channels, samples), floating point in [-1, 1].
        rate: Hertz of the array.
        sample_rate: Hertz wanted.

    Returns:
        (samples,), float32.

    Raises:
        InputError: If the array holds integers or no samples, or its layout or rate is not valid.
    """
    audio = np.asarray(array)
    if not np.issubdtype(audio.dtype, np.floating):
        raise InputError(
            f"audio must be floating point in [-1, 1], got {audio.dtype}: divide by the full scale"
        )
    if audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise InputError(f"audio must be (samples,) or (channels, samples); {audio.shape} looks transposed")
    if audio.ndim not in (1, 2) or audio.size == 0:
        raise InputError(f"audio must be (samples,) or (channels, samples), got the shape {audio.shape}")
    if not rate or rate <= 0:
        raise InputError(f"the sampling rate must be a positive number of hertz, got {rate!r}")
    if audio.dtype == np.float16:  # soxr does not support float16, and a mean in float16 loses digits
        audio = audio.astype(np.float32)
    audio = audio.mean(axis=0) if audio.ndim == 2 else audio
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate)
    if audio.size == 0:  # resampled to nothing: shorter than one sample
        audio = np.zeros(1)
    return torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))


class MtebEncoder:
    """A model behind mteb's encoder interface: ``mteb.evaluate(MtebEncoder(model), tasks)``.

    A clip's embedding is its scene embedding, at its own length: nothing is cut or padded.

    Args:
        model: From :func:`hear_m2d.load_model`, on the device to use.
        name: ``organization/model``, under which mteb files the results.
        revision: Distinguishes checkpoints of one name in mteb's cache of results; None: a checksum of the
            weights, config and options.
    """

    def __init__(
        self, model: HearModel, name: str = "hear-m2d/checkpoint", revision: str | None = None
    ) -> None:
        if name.count("/") != 1:
            raise InputError(f"name must be organization/model, got {name!r}")
        self.model = model
        self.name = name
        self.revision = revision or weights_digest(model)[:16]
        self._meta: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        """The model's metadata for mteb: a ``mteb.ModelMeta``."""
        if self._meta is None:
            from mteb.models.model_meta import ModelMeta, ScoringFunction

            parameters = sum(weight.numel() for weight in self.model.parameters())
            fields = {
                "name": self.name,
                "revision": self.revision,
                "modalities": ["audio"],
                "embed_dim": self.model.scene_embedding_size,
                "n_parameters": parameters,
                "memory_usage_mb": sum(w.nbytes for w in self.model.parameters()) / 2**20,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
            self._meta = ModelMeta.create_empty(overwrites=fields)
        return self._meta

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, show_progress_bar: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """Return one embedding per clip, (clips, size), float32.

        Args:
            inputs: Batches (a DataLoader) whose ``audio`` is a list of objects with ``array`` and
                ``sampling_rate``.
            show_progress_bar: Show a progress bar.
            kwargs: Further arguments of mteb (task, split, prompt, batch size), which are ignored.

        Raises:
            InputError: If a batch has no audio, or audio that cannot be embedded.
        """
        from tqdm.auto import tqdm

        embeddings = []
        for batch in tqdm(inputs, disable=not show_progress_bar, desc="embedding"):
            if "audio" not in batch:
                raise InputError(f"only audio can be embedded; this batch holds {', '.join(sorted(batch))}")
            clips = [
                mono(item["array"], rate=item["sampling_rate"], sample_rate=self.model.sample_rate)
                for item in batch["audio"]
            ]
            embeddings.append(self.model.scene_embeddings(clips).float().cpu().numpy())
        if not embeddings:
            return np.zeros((0, self.model.scene_embedding_size), dtype=np.float32)
        return np.concatenate(embeddings)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of every pair, (n, m)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of corresponding embeddings, (n,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(embeddings: Any) -> Tensor:
    """Return embeddings (n, size) or (size,) of length 1, as (n, size)."""
    vectors = torch.as_tensor(embeddings).float()
    return nn.functional.normalize(vectors[None] if vectors.ndim == 1 else vectors, dim=-1)
