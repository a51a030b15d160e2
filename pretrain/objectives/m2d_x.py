"""M2D-X: M2D with a second, offline task in the same pass, from a frozen teacher, labels or given features.

Source: Niizumi et al., "Masked Modeling Duo: Toward a Universal Audio Pre-training Framework" (TASLP 2024);
its applications M2D-AS (AudioSet's labels) and M2D-S (features of HuBERT). Numbers as in its published code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hear_m2d.model.encoder import EncoderConfig, initialize
from hear_m2d.pretrain.objectives.base import ObjectiveOutput, at_least_float32
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.objectives.m2d import M2D
from hear_m2d.pretrain.objectives.masking import Mask, take
from hear_m2d.pretrain.objectives.teacher import Teacher, to_columns
from hear_m2d.utils.errors import InputError


class M2DX(M2D):
    """The M2D-X objective: M2D, with a linear layer that learns the offline task from the online encoder.

    Args:
        encoder: Sizes of both encoders.
        predictor: Sizes of the predictor.
        offline: Where the offline target comes from: a ``teacher``, the data's ``labels`` or ``features``.
        offline_features: Features of a target column, or classes.
        online_weight: Of M2D's own loss.
        offline_weight: Of the offline loss.
        **options: Those of :class:`M2D`.

    Attributes:
        teacher: The frozen network, if there is one. It is not part of this module: it is neither trained nor
            saved.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        predictor: DecoderConfig,
        *,
        offline: str,
        offline_features: int,
        online_weight: float = 1.0,
        offline_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(encoder, predictor, **options)
        self.offline = offline
        self.online_weight, self.offline_weight = online_weight, offline_weight
        self.teacher: Teacher | None = None
        self.offline_predictor = nn.Linear(encoder.column_width, offline_features)
        if offline != "features":  # M2D-S keeps PyTorch's default
            initialize(self.offline_predictor)

    @property
    def offline_shape(self) -> tuple[int, ...]:
        """Shape of one clip's offline target: (columns, features), or (classes,)."""
        features = self.offline_predictor.out_features
        return (features,) if self.offline == "labels" else (self.encoder.config.grid[1], features)

    @torch.no_grad()
    def offline_target(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the teacher's output for the clean clips, or the data's target.

        Args:
            batch: ``clean`` where noise is mixed in, else ``x``, (batch, 1, mels, frames); ``target`` where
                there is no teacher.

        Returns:
            (batch, columns, features), or labels (batch, classes).
        """
        if self.offline != "teacher":
            if "target" not in batch:
                raise InputError(
                    f'the data carries no {self.offline}, which offline = "{self.offline}" needs'
                )
            return batch["target"]
        if self.teacher is None:
            raise InputError("this M2D-X has no teacher: set objective.teacher")
        return self.teacher.columns(batch.get("clean", batch["x"]))

    def forward(self, x: Tensor, noise: Tensor, target: Tensor | None = None) -> ObjectiveOutput:
        """Run one step.

        Args:
            x: Standardized log-mel, (batch, 1, mels, frames); noise may be mixed in.
            noise: Uniform, (batch, patches): it chooses the mask.
            target: What :meth:`offline_target` returned.
        """
        if target is None or target.shape[1:] != self.offline_shape:
            shape = None if target is None else list(target.shape[1:])
            raise InputError(f"a clip's offline target has shape {shape}, not {list(self.offline_shape)}")
        # M2D, steps 1 to 9.
        tokens, mask, z, predicted = self.online(x, noise)
        seen = self.targets(tokens.detach(), mask)  # (batch, masked, width)
        online = self.compare(predicted, self.batch_normed(seen))
        # 10. The student's features of each column: encoder outputs at visible patches, predictions at
        # masked ones.
        columns = self.student_columns(z, predicted, mask)  # (batch, columns, rows * width)
        # 11. The offline predictor: one linear layer a column.
        answer = self.offline_predictor(columns)  # (batch, columns, features)
        # 12. The offline loss, over all columns, and the sum of both.
        offline = self.compare_offline(answer, target)
        loss = self.online_weight * online + self.offline_weight * offline
        meters = {"loss_online": online.detach(), "loss_offline": offline.detach()}
        return ObjectiveOutput(loss=loss, predicted=predicted, target=seen, latent=z, meters=meters)

    def student_columns(self, z: Tensor, predicted: Tensor, mask: Mask) -> Tensor:
        """Put visible and masked patches back into grid order, and stack the rows of each column.

        Args:
            z: Encoder output, (batch, [1 +] visible, width).
            predicted: (batch, masked, width), in the mask's order.
            mask: Which patches they are of.

        Returns:
            (batch, columns, rows * width).
        """
        visible = z[:, -mask.visible.shape[1] :]  # without the class token
        shuffled = torch.cat([at_least_float32(visible), at_least_float32(predicted)], dim=1)
        return to_columns(take(shuffled, mask.restore()), rows=self.encoder.config.grid[0])

    def compare_offline(self, answer: Tensor, target: Tensor) -> Tensor:
        """Return the offline loss: M2D's comparison over columns, or cross-entropy with the labels.

        Args:
            answer: (batch, columns, features).
            target: (batch, columns, features), or labels (batch, classes).
        """
        if self.offline != "labels":
            return self.compare(answer, target)
        logits = at_least_float32(answer).mean(1)  # (batch, classes): the mean over columns
        return nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
