"""Audio embeddings from masked spectrogram modeling, through the HEAR API.

    model = hear_m2d.load_model("checkpoint.safetensors")
    scene = hear_m2d.get_scene_embeddings(audio, model)
    embeddings, milliseconds = hear_m2d.get_timestamp_embeddings(audio, model)

Source: https://hearbenchmark.com/hear-api.html (HEAR common API).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hear_m2d.model.hear_model import Audio, HearModel

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the model's class when it is asked for: `import hear_m2d` alone does not load torch."""
    if name == "HearModel":
        from hear_m2d.model.hear_model import HearModel

        return HearModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_model(
    model_file_path: str | os.PathLike[str] = "",
    *,
    sample_rate: int | None = None,
    input_frames: int | None = None,
    mean: float | None = None,
    std: float | None = None,
    dur_frames: int | None = None,
    windows: str = "whole",
    normalization: str = "fixed",
    timestamps: str = "interpolate",
    layers: Sequence[int] | None = None,
    layer_mode: str = "concat",
    output: str = "columns",
    dtype: str = "float32",
    compile: bool = False,
    **unknown: Any,
) -> HearModel:
    """Load a checkpoint, in eval mode, on the CPU.

    Args:
        model_file_path: A path (our ``.safetensors``, a published ``.pth``, a zip or folder with one), a name
            of a registry, ``hf://owner/repo``, or an address: see
            :func:`hear_m2d.checkpoint.resolve.read_weights`. Empty: the default checkpoint of the package.
        sample_rate: Hertz, where the file does not say (published files say it in their name only). This and
            the next three replace the file's values.
        input_frames: Frames of one window, where that is not a multiple of the patch.
        mean: Mean of the log-mel in training.
        std: Standard deviation of the log-mel in training.
        dur_frames: Resample (longer) or crop (shorter) the stored positions to one window of this length.
        windows: ``whole``: no frame is lost between windows; ``published``: as the authors' code of the
            checkpoint's code base cuts them.
        normalization: ``fixed``: the checkpoint's statistics; ``batch``: those of the current batch, as in
            the first MSM-MAE, so that a clip's embedding depends on the other clips.
        timestamps: ``interpolate`` columns in time, or ``dense``: one shifted pass per timestamp phase.
        layers: Block indices to embed with, from 0, negative ones allowed; None is the last block.
        layer_mode: ``concat`` the layers' features, or take their ``mean``.
        output: ``columns``: frequency rows stacked, as the papers embed; ``mean``: their mean;
            ``tokens``: the single tokens (their mean where one vector per time is asked for).
        dtype: ``float32`` or ``bfloat16``, of the encoder; front end and outputs stay float32.
        compile: Have torch compile the encoder's blocks on their first use, once for all lengths.
        unknown: Refused, with the nearest name.

    Returns:
        The model; ``model.to(device)`` moves it.

    Raises:
        FileNotFoundError: No such file or name; the nearest names are shown.
        ConnectionError: A file that must be downloaded cannot be reached.
        InputError: Not a checkpoint, an unknown option (the nearest is named), or a value out of range; a
            ValueError.
    """
    # The keywords; before any other local name.
    options = {k: v for k, v in locals().items() if k not in ("model_file_path", "unknown")}
    from hear_m2d.checkpoint.build import model_of
    from hear_m2d.checkpoint.resolve import read_weights
    from hear_m2d.model.config import Options

    checked = Options.parse(options | unknown)  # before a large file is read
    return model_of(read_weights(model_file_path), checked)


def get_scene_embeddings(audio: Audio, model: HearModel) -> Tensor:
    """Return one embedding per clip, without gradients.

    Args:
        audio: (batch, samples) in [-1, 1] at ``model.sample_rate``, or a list of (samples,) of any lengths.
        model: From :func:`load_model`.

    Returns:
        (batch, model.scene_embedding_size), float32.

    Raises:
        ValueError: Audio that cannot be embedded; the message says why.
    """
    return model.scene_embeddings(audio)


def get_timestamp_embeddings(audio: Audio, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings at regular times, at most 50 ms apart, without gradients.

    Args:
        audio: (batch, samples) in [-1, 1] at ``model.sample_rate``, or a list of (samples,) of any lengths.
        model: From :func:`load_model`.

    Returns:
        Embeddings (batch, n, model.timestamp_embedding_size), and the center of each in milliseconds,
        (batch, n); both float32. For a list of clips, two lists with a tensor each: (n, size) and (n,).

    Raises:
        ValueError: Audio that cannot be embedded; the message says why.
    """
    return model.timestamp_embeddings(audio)
