"""The encoder: spectrogram patches, fixed 2-D sine-cosine positions, class token, timm blocks.

Tokens are frequency-major: token index = row * columns + column, the lowest frequency row first.
Source: M2D (Niizumi et al., 2023) section III; ViT (Dosovitskiy et al., 2021); MAE (He et al., 2022).
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hear_m2d.utils.errors import InputError, check_integers

SIZES: dict[str, tuple[int, int, int]] = {  # width, blocks, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    Attributes:
        input_size: Mel bins and frames of one window.
        patch_size: Mel bins and frames of one patch.
        width: Features of a token.
        depth: Transformer blocks.
        heads: Attention heads.
        mlp_ratio: Hidden features of a block's MLP, as a multiple of the width.
        class_token: Whether a learned class token stands before the patches.
    """

    input_size: tuple[int, int] = (80, 608)
    patch_size: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or len(self.patch_size) != 2:
            raise InputError(f"input_size and patch_size must be two integers each, not {self}")
        (mels, frames), (high, wide) = self.input_size, self.patch_size
        sizes = {"mels": mels, "frames": frames, "patch height": high, "patch width": wide}
        check_integers(minimum=1, **sizes, width=self.width, depth=self.depth, heads=self.heads)
        if mels % high or frames < wide:
            raise InputError(f"patches of {high}x{wide} do not tile an input of {mels}x{frames}")
        if self.width % self.heads or self.width % 4:
            raise InputError(f"width {self.width} must divide by 4 and by the {self.heads} heads")
        if not isinstance(self.class_token, bool):
            raise InputError(f"class_token must be true or false, got {self.class_token!r}")
        if not 0 < self.mlp_ratio < 100:
            raise InputError(f"mlp_ratio must be a positive number, usually 4, got {self.mlp_ratio}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and time of one window."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]

    @property
    def column_width(self) -> int:
        """Features of a column: all frequency rows of one time step, stacked."""
        return self.grid[0] * self.width


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Return the fixed 2-D position table, (rows * columns, width), float32.

    The first half of the features encodes time, the second frequency; each half holds its sines, then
    its cosines, of position / 10000^(k / (width / 4)). Positions are integers, so the table of a
    shorter grid is a column subset of a longer one's.
    """
    rows, columns = grid
    rates = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    time = np.outer(np.tile(np.arange(columns), rows), rates)
    frequency = np.outer(np.repeat(np.arange(rows), columns), rates)
    table = np.concatenate([np.sin(time), np.cos(time), np.sin(frequency), np.cos(frequency)], axis=1)
    return torch.from_numpy(table).float()


def resize_positions(table: Tensor, grid: tuple[int, int], columns: int) -> Tensor:
    """Return a stored table for another number of columns: cropped if fewer, resampled (bicubic) if more.

    The table is (1, [1 +] rows * columns, width), of rows and columns ``grid``; a class token's row stays.
    """
    rows, now = grid
    first = table[:, : table.shape[1] - rows * now]
    image = table[:, first.shape[1] :].reshape(1, rows, now, -1)[:, :, :columns]
    if columns > now:
        image = image.permute(0, 3, 1, 2)  # (1, width, rows, columns)
        image = nn.functional.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False)
        image = image.permute(0, 2, 3, 1)
    return torch.cat([first, image.reshape(1, rows * columns, -1)], dim=1)


class BlockNorm(nn.LayerNorm):
    """LayerNorm in the precision of its input.

    On a GPU, autocast would cast a bfloat16 input to float32 and back, in three passes over it; the kernel
    computes its statistics in float32 anyway.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (…, width)."""
        if not x.is_cuda or x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return nn.functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def transformer_blocks(width: int, *, depth: int, heads: int, mlp_ratio: float = 4.0) -> nn.ModuleList:
    """Return ``depth`` pre-norm blocks of timm: joint qkv with bias, exact GELU, LayerNorm eps 1e-6."""
    # Heavy, so imported where an encoder is built; and never on a caller's meta device, where torch 2.6
    # cannot import its compiler.
    _import_triton_beside_tensorflow()
    with torch.device("cpu"):
        from timm.models.vision_transformer import Block

    norm: Any = partial(BlockNorm, eps=1e-6)
    return nn.ModuleList(
        Block(dim=width, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm)
        for _ in range(depth)
    )


def _import_triton_beside_tensorflow() -> None:
    """Import triton, as timm will, bound to its own LLVM: with that of tensorflow 2.20 it crashes."""
    if "tensorflow.python" not in sys.modules:
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        with suppress(ImportError):
            importlib.import_module("triton")
    finally:
        sys.setdlopenflags(flags)


def attention_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which attention runs: on a GPU, a fixed order of kernels.

    torch's own order changes between its versions and GPUs; cuDNN's kernel, the first on some, builds a plan
    for each new shape, and its backward pass has had errors.
    """
    if device.type != "cuda":
        return nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Have torch compile the blocks on their first call, for any number and length of windows.

    Block by block: the blocks are equal, so that the code compiled for the first is used for all.
    """
    for block in blocks:
        block.compile(dynamic=True)


def initialize(module: nn.Module) -> None:
    """Initialize as published: Xavier-uniform weights with zero biases, LayerNorm one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


class PatchEmbedding(nn.Module):
    """Spectrogram (batch, 1, mels, frames) → tokens (batch, patches, width); a trailing part is dropped."""

    def __init__(self, patch_size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size)
        # As one matrix, not as a convolution; the convolution's own bias keeps PyTorch's default.
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens in frequency-major order."""
        # Without overlap the convolution is one matrix product over flattened patches, which runs at
        # the machine's matrix rate, also in training, where a strided convolution's gradient does not.
        return nn.functional.linear(patchify(x, self.patch_size), self.proj.weight.flatten(1), self.proj.bias)


def patchify(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut (batch, 1, mels, frames) into (batch, patches, high * wide); pixels in (mel, frame) order."""
    high, wide = patch_size
    rows, columns = x.shape[-2] // high, x.shape[-1] // wide
    x = x[:, 0, : rows * high, : columns * wide].reshape(-1, rows, high, columns, wide)
    return x.permute(0, 1, 3, 2, 4).reshape(x.shape[0], rows * columns, high * wide)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], rows: int) -> Tensor:
    """Undo :func:`patchify`: (batch, patches, high * wide) → (batch, 1, mels, frames)."""
    high, wide = patch_size
    batch, count, _ = patches.shape
    x = patches.reshape(batch, rows, count // rows, high, wide).permute(0, 1, 3, 2, 4)
    return x.reshape(batch, 1, rows * high, count // rows * wide)


class SpectrogramEncoder(nn.Module):
    """A vision transformer over log-mel patches."""

    pos_embed: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = PatchEmbedding(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        positions = sincos_positions(width, config.grid)
        if config.class_token:  # the class token's row is zeros, and is added anyway
            positions = torch.cat([positions.new_zeros(1, width), positions])
        # Stored, not recomputed: fine-tuned files hold tables resampled to another length.
        self.register_buffer("pos_embed", positions[None])
        self.blocks = transformer_blocks(
            width, depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialize(self.blocks)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        """Return patch tokens with their positions.

        (batch, 1, mels, frames), standardized, at most as long as the input → (batch, rows * columns, width).
        """
        rows, columns = self.config.grid
        now = x.shape[-1] // self.config.patch_size[1]
        if now > columns:
            raise InputError(
                f"a window of {x.shape[-1]} frames is longer than the {self.config.input_size[1]}"
            )
        table = self.pos_embed[:, 1:] if self.cls_token is not None else self.pos_embed
        table = table.reshape(1, rows, columns, -1)[:, :, :now].flatten(1, 2)
        tokens: Tensor = self.patch_embed(x)
        return tokens + table.to(tokens.dtype)

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """Prepend the class token (and its position) to (batch, n, width), if there is one."""
        if self.cls_token is None:
            return tokens
        first = self.cls_token + self.pos_embed[:, :1].to(self.cls_token.dtype)
        return torch.cat([first.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final norm over tokens, (batch, n, width) → (batch, [1 +] n, width)."""
        x = self.with_class_token(tokens)
        with attention_kernels(x.device):
            for block in self.blocks:
                x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, x: Tensor) -> Tensor:
        """Return the patch tokens after the final norm, without the class token.

        (batch, 1, mels, frames), standardized, → (batch, rows * columns, width), frequency-major.
        """
        z = self.encode(self.embed(x))
        return z[:, 1:] if self.cls_token is not None else z

    def layers(self, x: Tensor) -> list[Tensor]:
        """Return every block's output without the class token; only the last is normed.

        (batch, 1, mels, frames), standardized, → ``depth`` tensors (batch, rows * columns, width).
        """
        tokens = self.with_class_token(self.embed(x))
        outputs = []
        with attention_kernels(x.device):
            for block in self.blocks:
                tokens = block(tokens)
                outputs.append(tokens)
        outputs[-1] = self.norm(tokens)
        return [z[:, 1:] for z in outputs] if self.cls_token is not None else outputs


def block_operations(width: int, tokens: int, *, depth: int, mlp_ratio: float = 4.0) -> float:
    """Return the operations of ``depth`` transformer blocks over one sequence."""
    linear = 2 * tokens * width * width * (4 + 2 * mlp_ratio)  # qkv, projection, the two of the MLP
    attention = 4 * tokens * tokens * width  # scores, and values weighted by them
    return depth * (linear + attention)


def encoder_operations(config: EncoderConfig, columns: int) -> float:
    """Return the operations of the encoder over one window of that many columns."""
    patches = config.grid[0] * columns
    embedding = 2 * patches * config.width * config.patch_size[0] * config.patch_size[1]
    return embedding + block_operations(
        config.width, patches + config.class_token, depth=config.depth, mlp_ratio=config.mlp_ratio
    )
