"""Masked Modeling Duo: predict a momentum encoder's output for the masked patches from the visible ones.

Source: Niizumi et al., "Masked Modeling Duo: Learning Representations by Encouraging Both Networks to
Model the Input" (ICASSP 2023), section III; steps and numbers as in its published implementation.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hear_m2d.model.encoder import EncoderConfig, SpectrogramEncoder, initialize, transformer_blocks
from hear_m2d.pretrain.objectives.base import (
    Objective,
    ObjectiveOutput,
    at_least_float32,
    standardize_features,
    standardize_tokens,
)
from hear_m2d.pretrain.objectives.decoder import Decoder, DecoderConfig
from hear_m2d.pretrain.objectives.masking import Mask, random_mask, take


class TargetEncoder(nn.Module):
    """The momentum network: blocks and final norm; patch embedding and class token are the online ones."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.blocks = transformer_blocks(
            config.width, depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialize(self)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, n, width), normed."""
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class M2D(Objective):
    """The objective: online encoder and predictor learn, the target encoder follows.

    Args:
        encoder: Sizes of both encoders.
        predictor: Sizes of the predictor.
        mask_ratio: Share of the patches that are masked.
        norm_pix_loss: Standardize each target token over its features.
        loss: ``cosine``: 2 - 2 cos, or ``mse``.
        target_init: ``random``: an independent draw, as published; ``online``: a copy of the online network.
        target_input: What the target encoder sees: the ``masked`` patches (M2D), or ``all`` (data2vec-like).
        batch_norm_target: First standardize each feature of the target over all masked tokens of a step. This
            is not in the paper: it removes what all tokens have in common (docs/experiments.md).
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        predictor: DecoderConfig,
        *,
        mask_ratio: float = 0.7,
        norm_pix_loss: bool = True,
        loss: str = "cosine",
        target_init: str = "random",
        target_input: str = "masked",
        batch_norm_target: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = SpectrogramEncoder(encoder)
        self.decoder = Decoder(predictor, encoder=encoder, out_features=encoder.width)
        self.target = TargetEncoder(encoder)
        if target_init == "online":
            self.target.blocks.load_state_dict(copy.deepcopy(self.encoder.blocks.state_dict()))
            self.target.norm.load_state_dict(self.encoder.norm.state_dict())
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.loss = loss
        self.target_input = target_input
        self.needs_whole_batch = batch_norm_target

    def forward(self, x: Tensor, noise: Tensor, target: Tensor | None = None) -> ObjectiveOutput:
        """Run one step.

        Args:
            x: Standardized log-mel, (batch, 1, mels, frames).
            noise: Uniform, (batch, patches): it chooses the mask.
            target: An offline target; this objective has none.
        """
        tokens, mask, z, predicted = self.online(x, noise)
        # 7. The target encoder sees only the masked patches.
        seen = self.targets(tokens.detach(), mask)  # (batch, masked, width)
        # 8. and 9. Standardize each target token, compare directions.
        loss = self.compare(predicted, self.batch_normed(seen))
        return ObjectiveOutput(loss=loss, predicted=predicted, target=seen, latent=z, meters={})

    def online(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Mask, Tensor, Tensor]:
        """Run the trained part, steps 1 to 6, and return the result of each step.

        Args:
            x: Standardized log-mel, (batch, 1, mels, frames).
            noise: Uniform, (batch, patches).
        """
        # 1. Patches and positions, once for both networks.
        tokens = self.encoder.embed(x)  # (batch, patches, width)
        # 2. A random mask per sample.
        mask = random_mask(noise, self.mask_ratio)
        # 3. The online encoder sees the class token and the visible patches.
        z = self.encoder.encode(take(tokens, mask.visible))  # (batch, 1 + visible, width)
        # 4. to 6. The predictor predicts the masked ones.
        predicted = self.decoder(z, mask)  # (batch, masked, width)
        return tokens, mask, z, predicted

    @torch.no_grad()
    def targets(self, tokens: Tensor, mask: Mask) -> Tensor:
        """Return the target network's tokens at the masked patches, (batch, masked, width)."""
        seen = take(tokens, mask.masked) if self.target_input == "masked" else tokens
        t = self.target(self.encoder.with_class_token(seen))
        t = t[:, -seen.shape[1] :]  # without the class token
        return t if self.target_input == "masked" else take(t, mask.masked)

    def batch_normed(self, target: Tensor) -> Tensor:
        """Return the target as it is, or, with ``batch_norm_target``, standardized over all tokens."""
        return standardize_features(at_least_float32(target)) if self.needs_whole_batch else target

    def compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss over masked tokens, in float32."""
        predicted, target = at_least_float32(predicted), at_least_float32(target)
        if self.norm_pix_loss:
            target = standardize_tokens(target)
        if self.loss == "mse":
            return nn.functional.mse_loss(predicted, target)
        cosine = (nn.functional.normalize(predicted, dim=-1) * nn.functional.normalize(target, dim=-1)).sum(
            -1
        )
        return (2 - 2 * cosine).mean()

    @torch.no_grad()
    def momentum_update(self, decay: float) -> None:
        """Move the target toward the online network: target = decay * target + (1 - decay) * online."""
        online = [*self.encoder.blocks.parameters(), *self.encoder.norm.parameters()]
        target = [*self.target.blocks.parameters(), *self.target.norm.parameters()]
        update: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(target, online, torch.empty(0))
