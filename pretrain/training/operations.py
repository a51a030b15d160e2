"""The operations of one clip's training step, counted from a recipe's shapes.

Counted are the matrix products: forward (online, target, teacher) plus twice the online forward.
"""

from __future__ import annotations

import math

from hear_m2d.model.encoder import EncoderConfig, block_operations, encoder_operations
from hear_m2d.pretrain.objectives.masking import visible_count
from hear_m2d.pretrain.recipe import Recipe


def operations_per_clip(recipe: Recipe, teacher: EncoderConfig | None = None) -> float:
    """Count the matrix products of one clip's step.

    Args:
        recipe: What is trained.
        teacher: Sizes of M2D-X's teacher; what it computes is counted too.
    """
    encoder, decoder = recipe.encoder_config, recipe.decoder_config
    patches, pixels = math.prod(encoder.grid), math.prod(encoder.patch_size)
    visible = visible_count(patches, recipe.mask_ratio)
    masked = patches - visible
    width, extra = encoder.width, int(encoder.class_token)
    online: float = 2 * patches * pixels * width
    online += block_operations(width, extra + visible, depth=encoder.depth)
    online += 2 * (extra + visible) * width * decoder.width
    online += block_operations(decoder.width, extra + patches, depth=decoder.depth)
    online += 2 * masked * decoder.width * (width if recipe.objective == "m2d" else pixels)
    frozen = 0.0
    if recipe.objective == "m2d":
        seen = masked if recipe.target_input == "masked" else patches
        frozen += block_operations(width, extra + seen, depth=encoder.depth)
    if recipe.offline:
        online += 2 * encoder.grid[1] * encoder.column_width * recipe.offline_features
    if recipe.offline == "teacher" and teacher is not None:
        frozen += encoder_operations(teacher, -(-recipe.input_frames // teacher.patch_size[1]))
    return 3 * online + frozen
