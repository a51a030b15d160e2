"""MSM-MAE: reconstruct the pixels of masked spectrogram patches from the visible ones.

Source: Niizumi et al., "Masked Spectrogram Modeling using Masked Autoencoders for Learning
General-purpose Audio Representation" (HEAR, PMLR 2022), section 2; He et al., MAE (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hear_m2d.model.encoder import EncoderConfig, SpectrogramEncoder, patchify
from hear_m2d.pretrain.objectives.base import Objective, ObjectiveOutput, at_least_float32, standardize_tokens
from hear_m2d.pretrain.objectives.decoder import Decoder, DecoderConfig
from hear_m2d.pretrain.objectives.masking import Mask, random_mask, take


class MSMMAE(Objective):
    """The MSM-MAE objective: encoder and decoder learn to reconstruct masked patches.

    Args:
        encoder: Sizes of the encoder.
        decoder: Sizes of the decoder.
        mask_ratio: Share of the patches that are masked.
        norm_pix_loss: Standardize each target patch over its pixels.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        *,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        high, wide = encoder.patch_size
        self.encoder = SpectrogramEncoder(encoder)
        self.decoder = Decoder(decoder, encoder=encoder, out_features=high * wide)
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss

    def forward(self, x: Tensor, noise: Tensor, target: Tensor | None = None) -> ObjectiveOutput:
        """Run one step.

        Args:
            x: Standardized log-mel, (batch, 1, mels, frames).
            noise: Uniform, (batch, patches): it chooses the mask.
            target: An offline target; this objective has none.
        """
        # The encoder sees the class token and the visible patches.
        mask = random_mask(noise, self.mask_ratio)
        z = self.encoder.encode(take(self.encoder.embed(x), mask.visible))  # (batch, 1 + visible, width)
        # The decoder reconstructs the masked ones.
        predicted = self.decoder(z, mask)  # (batch, masked, pixels)
        pixels = patchify(x, self.encoder.config.patch_size)  # (batch, patches, pixels)
        painted = take(pixels, mask.masked)
        # Every masked patch has the same number of pixels, so one mean is the mean over patches.
        goal = at_least_float32(painted)
        goal = standardize_tokens(goal) if self.norm_pix_loss else goal
        loss = (at_least_float32(predicted) - goal).square().mean()
        return ObjectiveOutput(loss=loss, predicted=predicted, target=painted, latent=z, meters={})

    @torch.no_grad()
    def reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Mask]:
        """Return the decoder's patches in grid order, (batch, patches, pixels), and the mask.

        With ``norm_pix_loss`` the decoder predicts standardized patches. They get the mean and deviation of
        the true patches, which it does not predict.
        """
        mask = random_mask(noise, self.mask_ratio)
        z = self.encoder.encode(take(self.encoder.embed(x), mask.visible))
        painted: Tensor = self.decoder(z, mask, only_masked=False)
        if self.norm_pix_loss:
            true = patchify(x, self.encoder.config.patch_size)
            painted = painted * torch.sqrt(true.var(-1, keepdim=True) + 1e-6) + true.mean(-1, keepdim=True)
        return painted, mask
