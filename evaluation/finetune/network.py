"""The network that is fine-tuned: an encoder, and on the mean of its patches or columns a linear head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hear_m2d
from hear_m2d.evaluation.finetune.augment import kept_patches
from hear_m2d.evaluation.finetune.recipe import FinetuneRecipe
from hear_m2d.model.hear_model import HearModel

HEAD_STD = 0.01


class FinetuneNetwork(nn.Module):
    """A :class:`HearModel` with a head, called on spectrograms.

    Args:
        model: With labels and a head.
        recipe: Whether a clip is one window, and which patches are dropped.
    """

    def __init__(self, model: HearModel, recipe: FinetuneRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Return logits, (clips, classes).

        Args:
            x: Standardized log-mel, (clips, 1, mels, frames).
            rng: Draws which patches are dropped; None drops none.
        """
        encoder = self.model.encoder
        (rows, most), patch = encoder.config.grid, encoder.config.patch_size[1]
        if self.recipe.input_frames is not None:  # one window; what does not fill a patch is dropped
            x = x[..., : most * patch]
        x = F.pad(x, (0, -x.shape[-1] % patch))
        sums: list[Tensor] = []
        count = 0
        for window in torch.split(x, most * patch, dim=-1):
            tokens = encoder.embed(window)  # (clips, rows * columns, width)
            columns = window.shape[-1] // patch
            if rng is not None and self.recipe.patch_drop:
                kept = kept_patches(
                    len(x), (rows, columns), self.recipe.patch_drop, self.recipe.patch_drop_rule, rng
                ).to(x.device)
                tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
            z = encoder.encode(tokens)
            z = z[:, 1:] if encoder.cls_token is not None else z
            if self.recipe.patch_drop:  # the mean over patches
                sums.append(z.sum(1))
                count += z.shape[1]
            else:  # the mean over time of all rows, stacked
                sums.append(z.reshape(len(z), rows, columns, -1).sum(2).flatten(1))
                count += columns
        assert self.model.head is not None
        logits: Tensor = self.model.head(torch.stack(sums).sum(0) / count)
        return logits


def make_network(
    model_path: str | os.PathLike[str], recipe: FinetuneRecipe, labels: Sequence[str], *, seed: int
) -> FinetuneNetwork:
    """Return the network that begins with a checkpoint's encoder and a fresh head.

    Args:
        model_path: What ``load_model`` takes.
        recipe: Of the fine-tuning.
        labels: Class names.
        seed: Of the head's weights, N(0, 0.01); its bias is 0.

    Raises:
        ValueError: Not a checkpoint.
    """
    base = hear_m2d.load_model(model_path, dur_frames=recipe.input_frames or None)
    encoder = base.config.encoder
    width = encoder.width if recipe.patch_drop else encoder.column_width
    model = HearModel(replace(base.config, labels=tuple(labels), head_width=width, projector=None))
    model.encoder.load_state_dict(base.encoder.state_dict())
    assert model.head is not None
    nn.init.normal_(model.head.linear.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(model.head.linear.bias)
    if recipe.freeze_patch_embedding:
        model.encoder.patch_embed.requires_grad_(False)
    return FinetuneNetwork(model, recipe)
