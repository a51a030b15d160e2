"""The untrained network as a HEAR module: a checkpoint's architecture with fresh random weights.

    hear-m2d evaluate --module hear_m2d.evaluation.baselines.untrained --model checkpoint.safetensors \
        --model-options '{"seed": 1}' --tasks-dir tasks --out scores

Front end, statistics, windows and timestamps are those of the checkpoint; only the weights differ. The
difference to a pretrained network's score is the gain from pretraining.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

import hear_m2d
from hear_m2d.model.encoder import SpectrogramEncoder
from hear_m2d.model.hear_model import HearModel

get_scene_embeddings = hear_m2d.get_scene_embeddings
get_timestamp_embeddings = hear_m2d.get_timestamp_embeddings


def load_model(model_file_path: str | os.PathLike[str] = "", *, seed: int = 0, **options: Any) -> HearModel:
    """Load a checkpoint's model and draw its weights anew.

    Args:
        model_file_path: As for :func:`hear_m2d.load_model`.
        seed: Of the random weights; the caller's random state is left as it was.
        options: As for :func:`hear_m2d.load_model`.
    """
    model = hear_m2d.load_model(model_file_path, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh: dict[str, Tensor] = SpectrogramEncoder(model.config.encoder).state_dict()
    model.encoder.load_state_dict(fresh)
    return model.eval()
