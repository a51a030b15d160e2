"""HearModel: waveform → log-mel → standardised → windows → encoder → columns → scene, timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hear_m2d.config import ModelConfig, Options
from hear_m2d.encoder import SpectrogramEncoder
from hear_m2d.frontend import LogMelSpectrogram
from hear_m2d.timestamps import (
    dense_offset,
    frame_step,
    interpolate_columns,
    timestamp_count,
    timestamps_ms,
)
from hear_m2d.windows import WindowPlan, plan_windows

Audio = Tensor | Sequence[Tensor]


class ClassifierHead(nn.Module):
    """BatchNorm without affine, then a linear layer: pooled features (batch, width) → logits."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        logits: Tensor = self.linear(self.norm(x))
        return logits


class HearModel(nn.Module):
    """An audio embedding model behind the HEAR API.

    Args:
        config: What the checkpoint says.
        options: What the caller asks for.
    """

    def __init__(self, config: ModelConfig, options: Options | None = None) -> None:
        super().__init__()
        self.options = options or Options()
        self.config = config = self.options.override(config)
        depth = config.encoder.depth
        for index in self.options.layers or ():
            if not -depth <= index < depth:
                raise ValueError(f"layers={list(self.options.layers or ())}: there are {depth} blocks")
        self.frontend = LogMelSpectrogram(config.frontend)
        self.encoder = SpectrogramEncoder(config.encoder)
        self.head = ClassifierHead(config.head_width, len(config.labels)) if config.head_width else None
        # Windows per forward pass: enough to fill the matrix units, few enough to stay in memory.
        self.batch_windows = 16

    @property
    def sample_rate(self) -> int:
        """Hertz that the audio must have."""
        return self.config.frontend.sample_rate

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the classifier; empty without one."""
        return self.config.labels

    @property
    def timestamp_embedding_size(self) -> int:
        """Features of one timestamp embedding."""
        encoder = self.config.encoder
        width = encoder.column_width if self.options.output == "columns" else encoder.width
        return width * self._layer_count

    @property
    def scene_embedding_size(self) -> int:
        """Features of a scene embedding: the mean over time has as many as one time."""
        return self.timestamp_embedding_size

    @property
    def _layer_count(self) -> int:
        return len(self.options.layers or (-1,)) if self.options.layer_mode == "concat" else 1

    def forward(self, audio: Audio) -> Tensor:
        """Return the columns of the last block after the final norm, with gradients.

        Args:
            audio: (batch, samples) in [-1, 1], or a list of (samples,) of one length.

        Returns:
            (batch, time_patches, freq_patches * width), the lowest frequency row first.

        Raises:
            ValueError: Audio that cannot be embedded; the message says why.
        """
        return self._windowed(self.standardised(self._batch(audio)), self._last_columns)

    @torch.no_grad()
    def columns(self, audio: Audio) -> Tensor:
        """Return what :meth:`forward` returns, without gradients."""
        columns: Tensor = self(audio)
        return columns

    @torch.no_grad()
    def features(self, audio: Audio) -> Tensor:
        """Return what embeddings are made of, as ``layers`` and ``output`` say, without gradients.

        Args:
            audio: (batch, samples) in [-1, 1], or a list of (samples,) of one length.

        Returns:
            ``columns`` and ``mean``: (batch, time_patches, features). ``tokens``: (batch, patches, features),
            window by window, within a window frequency-major.
        """
        spectrogram = self.standardised(self._batch(audio))
        columns = self._windowed(spectrogram, self._features)
        if self.options.output != "tokens":
            return self._rows_averaged(columns)
        encoder, plan = self.config.encoder, self._plan(spectrogram.shape[-1])
        windows = torch.split(columns, plan.stride // plan.patch, dim=1)
        shape = (self._layer_count, encoder.grid[0], encoder.width)
        tokens = [w.reshape(*w.shape[:2], *shape).permute(0, 3, 1, 2, 4) for w in windows]
        return torch.cat([t.reshape(t.shape[0], t.shape[1] * t.shape[2], -1) for t in tokens], dim=1)

    @torch.no_grad()
    def scene_embeddings(self, audio: Audio) -> Tensor:
        """Return one vector per clip, the mean over its columns: (batch, scene_embedding_size)."""
        groups = equal_lengths(audio)
        scenes: list[Tensor] = [torch.empty(0)] * sum(len(indices) for indices, _ in groups)
        for indices, clips in groups:
            columns = self._windowed(self.standardised(self._batch(clips)), self._features)
            means = self._rows_averaged(columns.mean(1, keepdim=True))[:, 0]
            for index, mean in zip(indices, means, strict=True):
                scenes[index] = mean
        return torch.stack(scenes)

    @torch.no_grad()
    def timestamp_embeddings(self, audio: Audio) -> tuple[Tensor, Tensor]:
        """Return embeddings in time and the centre of each.

        Args:
            audio: (batch, samples) in [-1, 1], or a list of (samples,) of one length.

        Returns:
            Embeddings (batch, n, timestamp_embedding_size) and their times in milliseconds (batch, n).
        """
        batch = self._batch(audio)
        patch = self.config.encoder.patch_size[1]
        step = frame_step(patch, self.config.frontend.hop_ms)
        count = timestamp_count(batch.shape[1], step=step, hop_length=self.config.frontend.hop_length)
        spectrogram = self.standardised(batch)
        if step < patch and self.options.timestamps == "dense":
            embeddings = self._dense(spectrogram, count=count, step=step)
        else:
            embeddings = self._windowed(spectrogram, self._features)
            plan = self._plan(spectrogram.shape[-1])
            if step == patch and plan.regular:  # each column is a timestamp's own
                embeddings = embeddings[:, :count]
            else:
                centres = plan.centres(embeddings.shape[1])
                embeddings = interpolate_columns(embeddings, centres, count=count, step=step)
        embeddings = self._rows_averaged(embeddings)
        times = timestamps_ms(count, step=step, frontend=self.config.frontend).float().to(batch.device)
        return embeddings, times.expand(len(batch), -1).clone()

    def classify(self, audio: Audio) -> Tensor:
        """Return logits, (batch, classes), of a checkpoint that holds a classifier.

        Raises:
            ValueError: The checkpoint holds none.
        """
        if self.head is None:
            raise ValueError("this checkpoint has no classifier: it only embeds")
        pooled = self(audio).mean(1)  # (batch, freq_patches * width)
        if self.config.head_width == self.config.encoder.width:  # the mean over tokens
            pooled = pooled.unflatten(1, (-1, self.config.encoder.width)).mean(1)
        return self.head(pooled)  # type: ignore[no-any-return]

    def standardised(self, batch: Tensor) -> Tensor:
        """Return (log-mel - mean) / std, (batch, mels, frames).

        The statistics are the checkpoint's own; with ``normalization="batch"`` those of the batch at hand.
        """
        logmel: Tensor = self.frontend(batch)
        if self.options.normalization == "batch":
            return (logmel - logmel.mean()) / logmel.std().clamp(min=1e-6)  # silence has none
        return (logmel - self.config.mean) / self.config.std

    def _batch(self, audio: Audio) -> Tensor:
        return check_audio(audio).to(device=self.encoder.pos_embed.device, dtype=torch.float32)

    def _windowed(self, x: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Run ``features`` over the windows of (batch, mels, frames): (batch, columns, …)."""
        plan = self._plan(x.shape[-1])
        x = nn.functional.pad(x, (0, plan.pad))  # 0 is the mean
        batch, mels, frames = x.shape
        full = min(plan.count, frames // plan.stride)
        parts = []
        if full:
            whole = x[..., : full * plan.stride].reshape(batch, mels, full, plan.stride)
            whole = whole[..., : plan.stride // plan.patch * plan.patch].transpose(1, 2)
            columns = self._run(whole.reshape(batch * full, 1, mels, -1), features)
            parts.append(columns.reshape(batch, full * columns.shape[1], -1))
        rest = (frames - full * plan.stride) // plan.patch * plan.patch
        if plan.count > full and rest:
            last = x[..., full * plan.stride :][..., :rest]
            parts.append(self._run(last[:, None], features))
        columns = torch.cat(parts, dim=1)
        return columns[:, : columns.shape[1] - plan.drop]

    def _plan(self, frames: int) -> WindowPlan:
        encoder = self.config.encoder
        rule = "whole" if self.options.windows == "whole" else self.config.code_base
        return plan_windows(frames, window=encoder.input_size[1], patch=encoder.patch_size[1], rule=rule)

    def _run(self, windows: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
        dtype = self.encoder.norm.weight.dtype
        parts = torch.split(windows, self.batch_windows)
        return torch.cat([features(part.to(dtype)).float() for part in parts])

    def _columns(self, tokens: Tensor) -> Tensor:
        """Stack the frequency rows: (windows, rows * n, width) → (windows, n, rows * width)."""
        windows, patches, width = tokens.shape
        rows = self.config.encoder.grid[0]
        return tokens.reshape(windows, rows, patches // rows, width).transpose(1, 2).flatten(2)

    def _rows_averaged(self, columns: Tensor) -> Tensor:
        """Average the frequency rows of (batch, n, layers * rows * width), unless columns are wanted."""
        if self.options.output == "columns":
            return columns
        encoder = self.config.encoder
        shape = (*columns.shape[:2], self._layer_count, encoder.grid[0], encoder.width)
        return columns.reshape(shape).mean(3).flatten(2)

    def _last_columns(self, windows: Tensor) -> Tensor:
        return self._columns(self.encoder(windows))

    def _features(self, windows: Tensor) -> Tensor:
        if self.options.layers is None:
            return self._last_columns(windows)
        outputs = self.encoder.layers(windows)
        chosen = [self._columns(outputs[index]) for index in self.options.layers]
        if self.options.layer_mode == "mean":
            return torch.stack(chosen).mean(0)
        return torch.cat(chosen, dim=-1)

    def _dense(self, x: Tensor, *, count: int, step: int) -> Tensor:
        """Encode p / q shifted copies, so that each timestamp is the centre of a column of its own."""
        patch = self.config.encoder.patch_size[1]
        phases = patch // step
        dense = x.new_empty(len(x), count, self.config.encoder.column_width * self._layer_count)
        for phase in range(min(phases, count)):
            offset = dense_offset(phase, step=step, patch_frames=patch)
            shifted = nn.functional.pad(x, (-offset, 0))  # a negative pad cuts frames
            wanted = dense[:, phase::phases]
            wanted.copy_(self._windowed(shifted, self._features)[:, : wanted.shape[1]])
        return dense


def check_audio(audio: Audio) -> Tensor:
    """Return the audio as one float32 tensor (batch, samples), or say why it cannot be embedded.

    Raises:
        TypeError: Neither a tensor nor a list of tensors.
        ValueError: Wrong rank, integers, no samples, not a number or infinite.
    """
    if isinstance(audio, Sequence) and not isinstance(audio, str):
        if not audio:
            raise ValueError("there is no audio: the list of clips is empty")
        if not all(isinstance(clip, Tensor) and clip.ndim == 1 for clip in audio):
            raise ValueError("a list of clips holds one-dimensional torch tensors, (samples,)")
        if len({clip.shape for clip in audio}) > 1:
            raise ValueError("the clips differ in length: embed clips of one length together")
        audio = torch.stack(list(audio))
    if not isinstance(audio, Tensor):
        raise TypeError(f"audio is a torch tensor (batch, samples), not {type(audio).__name__}")
    if audio.ndim != 2:
        raise ValueError(f"audio must be (batch, samples); its shape is {tuple(audio.shape)}")
    if not audio.is_floating_point():
        raise ValueError(
            f"audio must be floating point in [-1, 1], not {audio.dtype}: divide by the full scale"
        )
    if 0 in audio.shape:
        raise ValueError(f"there is no audio: its shape is {tuple(audio.shape)}")
    audio = audio.float()  # before the check: a large float64 becomes infinite
    if not bool(torch.isfinite(audio).all()):
        raise ValueError("audio holds NaN or infinite samples")
    return audio


def equal_lengths(audio: Audio) -> list[tuple[list[int], Audio]]:
    """Group clips by length: [(their indices, clips of one length)]; a tensor is one group."""
    if (
        not isinstance(audio, list | tuple)
        or not all(isinstance(clip, Tensor) for clip in audio)
        or not audio
    ):
        return [(list(range(len(check_audio(audio)))), audio)]
    groups: dict[int, list[int]] = {}
    for index, clip in enumerate(audio):
        groups.setdefault(clip.shape[-1] if clip.ndim else 0, []).append(index)
    return [(indices, [audio[i] for i in indices]) for indices in groups.values()]
