"""The model as one graph that torch.export can trace: any batch, any length, nothing decided in Python.

What depends on the audio's length is computed from its shape and read back as numbers, so that the graph
holds for one sample as for an hour. Numbers equal those of :class:`hear_m2d.HearModel`, to rounding.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hear_m2d.model.frontend import LOG_EPS, LogMelSpectrogram
from hear_m2d.model.hear_model import HearModel

_check: Any = torch._check  # a guarantee for the tracer; torch leaves it untyped
# Frames of the longest audio, almost 6 hours: torch 2.10 must know that no convolution has 2**31 values.
MAX_FRAMES = 2**21


def size_from(value: Tensor, *, least: int = 1) -> int:
    """Convert a number of the graph to a size, with a minimum."""
    number = cast(int, value.item())
    _check(number >= least)
    _check(number <= MAX_FRAMES)
    return number


class ExportableLogMel(nn.Module):
    """Waveform (batch, samples) → log-mel (batch, mels, frames), as one strided convolution.

    The transform is a product with the windowed cosines and sines: `torch.stft` has no counterpart with
    this padding in every runtime.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, frontend: LogMelSpectrogram) -> None:
        super().__init__()
        self.config = frontend.config
        size = self.config.n_fft
        # The product k·t is taken modulo the period in whole numbers: angles stay exact to double precision.
        bins, times = torch.arange(size // 2 + 1)[:, None], torch.arange(size)
        angles = (bins * times % size).double() * (2 * math.pi / size)
        window = frontend.window.detach().cpu().double()
        basis = torch.cat([angles.cos() * window, angles.sin() * window])  # (2 * bins, n_fft)
        self.register_buffer("basis", basis.float()[:, None])
        self.register_buffer("filters", frontend.filters.detach().cpu().clone()[..., None])

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-mel, and its number of frames as a tensor without dimensions."""
        half, size, hop = self.config.n_fft // 2, self.config.n_fft, self.config.hop_length
        samples = torch.full((), audio.shape[1], dtype=torch.int64)
        length = samples.clamp(min=half + 1)  # zeros are appended to audio too short for a reflection
        frames = torch.floor_divide(length + 2 * half - size, hop) + 1
        position = (torch.arange((size_from(frames) - 1) * hop + size) - half).abs()
        position = length - 1 - (length - 1 - position).abs()  # reflected at both ends
        extended = audio.index_select(1, torch.minimum(position, samples - 1)) * (position < samples)
        parts = F.conv1d(extended.unsqueeze(1), self.basis, stride=hop).square()
        real, imaginary = parts.chunk(2, dim=1)
        power = real + imaginary  # (batch, bins, frames)
        return torch.log(F.conv1d(power, self.filters) + LOG_EPS), frames


class ExportableModel(nn.Module):
    """Waveform (batch, samples) → scene embedding (batch, size) and columns (batch, n, column width).

    The scene embedding is that of the model's ``layers`` and ``output``, the columns are those of
    ``model.columns``. All windows of all clips run in one batch. The weights are copied, to the CPU.
    """

    def __init__(self, model: HearModel) -> None:
        super().__init__()
        self.config, self.options = model.config, model.options
        self.frontend = ExportableLogMel(model.frontend)
        self.encoder = copy.deepcopy(model.encoder).cpu().eval().requires_grad_(False)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scene embedding and the columns."""
        sizes = self.config.encoder
        (rows, longest), (high, wide) = sizes.grid, sizes.patch_size
        logmel, frames = self.frontend(audio)
        x = (logmel - self.config.mean) / self.config.std

        # A clip has n columns; its windows have as many each, or the model's input length if that is less:
        # audio shorter than one window costs its own length only.
        n = torch.floor_divide(frames + wide - 1, wide)
        window = n.clamp(max=longest)
        count = torch.floor_divide(n + window - 1, window)
        columns, in_window, windows = size_from(n), size_from(window), size_from(count)
        _check(in_window <= longest)

        frame = torch.arange(windows * in_window * wide)
        x = x.index_select(2, torch.minimum(frame, frames - 1)) * (frame < frames)  # 0 is the mean
        x = x.reshape(-1, rows, high, windows, in_window, wide).permute(0, 3, 1, 4, 2, 5)
        batch = audio.shape[0]
        patches = x.reshape(batch * windows, rows * in_window, high * wide)
        valid = torch.arange(windows * in_window) < n  # the last window's padding is not part of the clip
        tokens, valid = self._embed(patches, valid.reshape(windows, 1, in_window), in_window)
        mask = torch.where(valid, 0.0, -math.inf)  # (windows, tokens)
        mask = mask.unsqueeze(0).expand(batch, -1, -1).reshape(batch * windows, 1, 1, -1)

        layers = []
        for block in self.encoder.blocks:
            tokens = _block(block, tokens, mask)
            layers.append(tokens)
        layers[-1] = self.encoder.norm(tokens)

        def columns_of(tokens: Tensor) -> Tensor:  # (batch, columns, rows, width)
            if sizes.class_token:
                tokens = tokens.narrow(1, 1, rows * in_window)
            tokens = tokens.reshape(batch, windows, rows, in_window, sizes.width)
            tokens = tokens.permute(0, 1, 3, 2, 4).reshape(batch, windows * in_window, rows, sizes.width)
            return tokens.index_select(1, torch.arange(columns))

        last = columns_of(layers[-1]).flatten(2)
        chosen = [columns_of(layers[i]).mean(1) for i in self.options.layers or (-1,)]  # (batch, rows, width)
        if self.options.layer_mode == "mean":
            chosen = [torch.stack(chosen).mean(0)]
        parts = [c.flatten(1) if self.options.output == "columns" else c.mean(1) for c in chosen]
        return torch.cat(parts, dim=-1), last

    def _embed(self, patches: Tensor, valid: Tensor, in_window: int) -> tuple[Tensor, Tensor]:
        """Return tokens with positions, and which of them are part of the clip, (windows, tokens)."""
        sizes, encoder = self.config.encoder, self.encoder
        rows, longest = sizes.grid
        table: Any = encoder.pos_embed.narrow(1, int(sizes.class_token), rows * longest)
        table = table.reshape(1, rows, longest, sizes.width).index_select(2, torch.arange(in_window))
        projection = encoder.patch_embed.proj
        tokens = F.linear(patches, projection.weight.flatten(1), projection.bias) + table.flatten(1, 2)
        valid = valid.expand(-1, rows, -1).flatten(1)
        if encoder.cls_token is not None:
            first = (encoder.cls_token + encoder.pos_embed.narrow(1, 0, 1)).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
            valid = F.pad(valid, (1, 0), value=True)
        return tokens, valid


def _block(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Run a block of timm, with plain attention: the fused one needs sizes that are known in advance."""
    attention = block.attn
    heads, (count, tokens, width) = attention.num_heads, x.shape
    qkv = (
        attention.qkv(block.norm1(x)).reshape(count, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    )
    q, k, v = qkv.reshape(3, count * heads, tokens, width // heads).unbind(0)
    weights = torch.bmm(q * attention.scale, k.transpose(1, 2)).reshape(count, heads, tokens, tokens) + mask
    mixed = torch.bmm(weights.softmax(-1).reshape(count * heads, tokens, tokens), v)
    mixed = mixed.reshape(count, heads, tokens, width // heads).transpose(1, 2).reshape(count, tokens, width)
    x = x + attention.proj(mixed)
    result: Tensor = x + block.mlp(block.norm2(x))
    return result
