"""HearModel: waveform → log-mel → standardized → windows → encoder → columns → scene, timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hear_m2d.model.config import ModelConfig, Options
from hear_m2d.model.encoder import SpectrogramEncoder, compile_blocks
from hear_m2d.model.frontend import LogMelSpectrogram
from hear_m2d.model.heads import ClassifierHead, make_projector
from hear_m2d.model.pooling import Collector, Columns, InterpolatedColumns, MeanOverColumns, PhasedColumns
from hear_m2d.model.timestamps import dense_offset, frame_step, timestamp_count, timestamps_ms
from hear_m2d.model.windows import (
    Window,
    batch_statistics,
    cut_log_mel,
    passes,
    plan_windows,
    windows_per_pass,
)
from hear_m2d.utils.device import warn_of_slow_bfloat16
from hear_m2d.utils.errors import InputError, check_integers

Audio = Tensor | Sequence[Tensor]  # (batch, samples), or clips (samples,) of any lengths
PerClip = Any  # of a tensor, one tensor with the batch first; of a list of clips, a list with a tensor each


class HearModel(nn.Module):
    """An audio embedding model behind the HEAR API.

    Its methods take audio as a tensor (batch, samples) in [-1, 1] at ``sample_rate``, or as a list of tensors
    (samples,) of any lengths. They raise an :class:`~hear_m2d.utils.errors.InputError` (a ValueError) for
    audio that cannot be embedded, and where the checkpoint lacks the part that a method needs.

    Args:
        config: Config of the checkpoint.
        options: Options of the caller.
    """

    def __init__(self, config: ModelConfig, options: Options | None = None) -> None:
        super().__init__()
        self.options = options or Options()
        self.config = config = self.options.override(config)
        depth = config.encoder.depth
        for index in self.options.layers or ():
            if not -depth <= index < depth:
                raise InputError(f"layers={list(self.options.layers or ())}: there are {depth} blocks")
        self.frontend = LogMelSpectrogram(config.frontend)
        self.encoder = SpectrogramEncoder(config.encoder)
        self.head = ClassifierHead(config.head_width, len(config.labels)) if config.head_width else None
        self.projector = make_projector(config.encoder.width, config.projector) if config.projector else None
        # Windows per forward pass; None: enough to fill the device.
        self.batch_windows: int | None = None
        if self.options.compile:
            compile_blocks(self.encoder.blocks)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a copy, which never contains compiled code."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.options.compile:
            compile_blocks(self.encoder.blocks)

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
        """Features of a scene embedding, which is a mean over time."""
        return self.timestamp_embedding_size

    @property
    def _layer_count(self) -> int:
        return len(self.options.layers or (-1,)) if self.options.layer_mode == "concat" else 1

    def forward(self, audio: Audio) -> PerClip:
        """Return the columns of the last block after the final norm, with gradients.

        Returns:
            (batch, time_patches, freq_patches * width), the lowest frequency row first; for a list, a list
            of (time_patches, freq_patches * width).
        """
        columns = self._last_columns(check_audio(audio))
        return torch.stack(columns) if isinstance(audio, Tensor) else columns

    @torch.no_grad()
    def columns(self, audio: Audio) -> PerClip:
        """Return what :meth:`forward` returns, without gradients."""
        return self.forward(audio)

    @torch.no_grad()
    def features(self, audio: Audio) -> PerClip:
        """Return the features selected by ``layers`` and ``output``, without gradients.

        Returns:
            ``columns`` and ``mean``: (batch, time_patches, features). ``tokens``: (batch, patches, features),
            window by window, within a window frequency-major. For a list, a list without the batch.
        """
        clips = check_audio(audio)
        arrange = self._tokens_of_window if self.options.output == "tokens" else self._rows_averaged
        collector = Columns(len(clips), arrange)
        self._stream(clips, [collector])
        features = collector.result()
        return torch.stack(features) if isinstance(audio, Tensor) else features

    @torch.no_grad()
    def scene_embeddings(self, audio: Audio) -> Tensor:
        """Return one vector per clip, the mean over its columns: (batch, scene_embedding_size), float32."""
        clips = check_audio(audio)
        scenes = self._mean_over_columns(len(clips))
        self._stream(clips, [scenes])
        return self._rows_averaged(scenes.result())

    @torch.no_grad()
    def timestamp_embeddings(self, audio: Audio) -> tuple[PerClip, PerClip]:
        """Return embeddings in time and the center of each.

        Returns:
            Embeddings (batch, n, timestamp_embedding_size) and their times in milliseconds (batch, n); for a
            list, two lists of tensors without the batch. All are float32.
        """
        _, embeddings, times = self._embed(audio, scenes=False)
        return embeddings, times

    @torch.no_grad()
    def scene_and_timestamp_embeddings(self, audio: Audio) -> tuple[Tensor, PerClip, PerClip]:
        """Return scenes, embeddings in time and their times, from one run of the encoder."""
        return self._embed(audio, scenes=True)

    def classify(self, audio: Audio) -> Tensor:
        """Return logits, (batch, classes), of a checkpoint that holds a classifier, with gradients."""
        if self.head is None:
            raise InputError("this checkpoint has no classifier: it only embeds")
        means = [columns.mean(0) for columns in self._last_columns(check_audio(audio))]
        pooled = torch.stack(means)  # (batch, freq_patches * width)
        if self.config.head_width == self.config.encoder.width:  # the mean over tokens
            pooled = pooled.reshape(len(pooled), -1, self.config.encoder.width).mean(1)
        return self.head(pooled.to(self.head.linear.weight.dtype)).float()  # type: ignore[no-any-return]

    def project(self, audio: Audio) -> Tensor:
        """Return M2D-CLAP's audio vectors, which lie beside its texts': (batch, width), with gradients."""
        if self.projector is None:
            raise InputError("this checkpoint has no audio projector: it is not an M2D-CLAP model")
        width = self.config.encoder.width
        clips = self._last_columns(check_audio(audio))  # each (time_patches, freq_patches * width)
        dtype = next(self.projector.parameters()).dtype
        vectors = [self.projector(columns.reshape(1, -1, width).to(dtype)) for columns in clips]
        return torch.cat(vectors).float()

    def standardized(self, batch: Tensor) -> Tensor:
        """Return (log-mel - mean) / std of whole clips, (batch, mels, frames).

        The statistics are the checkpoint's own; with ``normalization="batch"`` those of the current batch.
        """
        clips = [clip.to(self._device) for clip in check_audio(batch)]
        mean, std = self._statistics(clips)
        logmel: Tensor = self.frontend(torch.stack(clips))
        return (logmel - mean) / std

    @property
    def _device(self) -> torch.device:
        return self.encoder.pos_embed.device

    def _statistics(self, clips: Sequence[Tensor]) -> tuple[float, float]:
        if self.options.normalization == "batch":
            return batch_statistics(self.frontend, clips, self._device)
        return self.config.mean, self.config.std

    def _windows(self, clips: Sequence[Tensor], shift: int = 0, phase: int = 0) -> list[Window]:
        """Return the windows of all clips; with a shift, those of spectrograms that begin at that frame."""
        encoder = self.config.encoder
        rule = "whole" if self.options.windows == "whole" else self.config.code_base
        windows = []
        for clip, audio in enumerate(clips):
            frames = self.config.frontend.frames(len(audio)) - shift
            if frames > 0:
                plan = plan_windows(
                    frames, window=encoder.input_size[1], patch=encoder.patch_size[1], rule=rule
                )
                windows += plan.windows(frames, clip=clip, shift=shift, phase=phase)
        return windows

    def _stream(
        self,
        clips: Sequence[Tensor],
        collectors: Sequence[Collector],
        *,
        windows: Sequence[Window] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Encode the windows, a pass at a time, and hand their columns to the collectors.

        By default the windows are those of the clips, and the columns the features that the options select.
        """
        dtype = self.encoder.norm.weight.dtype
        warn_of_slow_bfloat16(dtype, self._device)
        statistics = self._statistics(clips)
        if self.batch_windows is not None:
            check_integers(minimum=1, batch_windows=self.batch_windows)

        def size(frames: int) -> int:
            return self.batch_windows or windows_per_pass(self.config.encoder, frames, self._device)

        for group in passes(self._windows(clips) if windows is None else windows, size):
            x = cut_log_mel(self.frontend, clips, group, statistics=statistics, device=self._device)
            columns = (features or self._features)(x[:, None].to(dtype)).float()
            for collector in collectors:
                collector.add(group, columns)

    def _embed(self, audio: Audio, *, scenes: bool) -> tuple[Any, Any, Any]:
        """Return scenes (or None), embeddings in time, and their times."""
        clips = check_audio(audio)
        config, frontend = self.config.encoder, self.config.frontend
        patch = config.patch_size[1]
        step = frame_step(patch, frontend.hop_ms)
        counts = [timestamp_count(len(clip), step=step, hop_length=frontend.hop_length) for clip in clips]
        size = self.timestamp_embedding_size
        if isinstance(audio, Tensor):
            embeddings: Any = self._empty(len(clips), counts[0], size)
        else:
            embeddings = [self._empty(count, size) for count in counts]
        means = self._mean_over_columns(len(clips)) if scenes else None
        collectors: list[Collector] = [] if means is None else [means]
        if step < patch and self.options.timestamps == "dense":
            if collectors:
                self._stream(clips, collectors)
            phases = patch // step
            windows = []
            for phase in range(min(phases, max(counts))):
                shift = dense_offset(phase, step=step, patch_frames=patch)
                windows += self._windows(clips, shift, phase)
            phased = PhasedColumns(embeddings, phases=phases, arrange=self._rows_averaged)
            self._stream(clips, [phased], windows=windows)
        else:
            smooth = InterpolatedColumns(embeddings, step=step, patch=patch, arrange=self._rows_averaged)
            self._stream(clips, [*collectors, smooth])
            smooth.finish()
        times: Any = [timestamps_ms(n, step=step, frontend=frontend).float().to(self._device) for n in counts]
        if isinstance(audio, Tensor):
            times = torch.stack(times)
        return None if means is None else self._rows_averaged(means.result()), embeddings, times

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def _mean_over_columns(self, clips: int) -> MeanOverColumns:
        size = self.config.encoder.column_width * self._layer_count
        return MeanOverColumns(clips, size, self._device)

    def _last_columns(self, clips: Sequence[Tensor]) -> list[Tensor]:
        collector = Columns(len(clips))
        self._stream(clips, [collector], features=lambda x: self._columns(self.encoder(x)))
        return collector.result()

    def _columns(self, tokens: Tensor) -> Tensor:
        """Stack the frequency rows: (windows, rows * n, width) → (windows, n, rows * width)."""
        windows, patches, width = tokens.shape
        rows = self.config.encoder.grid[0]
        return tokens.reshape(windows, rows, patches // rows, width).transpose(1, 2).flatten(2)

    def _features(self, windows: Tensor) -> Tensor:
        if self.options.layers is None:
            return self._columns(self.encoder(windows))
        outputs = self.encoder.layers(windows)
        chosen = [self._columns(outputs[index]) for index in self.options.layers]
        if self.options.layer_mode == "mean":
            return torch.stack(chosen).mean(0)
        return torch.cat(chosen, dim=-1)

    def _by_row(self, columns: Tensor) -> Tensor:
        """Unfold the features of (n, layers * rows * width) to (n, layers, rows, width)."""
        encoder = self.config.encoder
        return columns.reshape(len(columns), self._layer_count, encoder.grid[0], encoder.width)

    def _rows_averaged(self, columns: Tensor) -> Tensor:
        """Average the frequency rows of (n, layers * rows * width), unless columns are wanted."""
        if self.options.output == "columns":
            return columns
        return self._by_row(columns).mean(2).flatten(1)

    def _tokens_of_window(self, columns: Tensor) -> Tensor:
        """Return one window's tokens, frequency-major: (rows * n, layers * width)."""
        return self._by_row(columns).permute(2, 0, 1, 3).flatten(0, 1).flatten(1)


def check_audio(audio: Audio) -> list[Tensor]:
    """Return the clips, each (samples,), or raise an error that says why they cannot be embedded.

    Raises:
        TypeError: Neither a tensor nor a list of tensors.
        InputError: Wrong rank, integers, no samples, not a number or infinite.
    """
    if isinstance(audio, Tensor):
        if audio.ndim != 2:
            raise InputError(f"audio must be (batch, samples); its shape is {tuple(audio.shape)}")
        if audio.shape[1] <= 8 and audio.shape[0] > 1000:
            raise InputError(
                f"audio must be (batch, samples); {tuple(audio.shape)} looks like (samples, channels), as "
                "soundfile.read returns it: give audio.mean(1)[None] for one mono clip"
            )
        _check_samples(audio)
        return list(audio.unbind())
    if not isinstance(audio, Sequence) or isinstance(audio, str):
        raise TypeError(f"audio is a torch tensor (batch, samples), not {type(audio).__name__}")
    if not audio:
        raise InputError("there is no audio: the list of clips is empty")
    if not all(isinstance(clip, Tensor) and clip.ndim == 1 for clip in audio):
        raise InputError("a list of clips holds one-dimensional torch tensors, (samples,)")
    for clip in audio:
        _check_samples(clip)
    return list(audio)


def _check_samples(audio: Tensor) -> None:
    if not audio.is_floating_point():
        raise InputError(
            f"audio must be floating point in [-1, 1], not {audio.dtype}: divide by the full scale"
        )
    if 0 in audio.shape:
        raise InputError(f"there is no audio: its shape is {tuple(audio.shape)}")
    # The extremes are NaN if a sample is, and need no copy of the audio. A large float64 becomes infinite.
    extremes = torch.stack(torch.aminmax(audio.detach())).float()
    if not bool(extremes.isfinite().all()):
        raise InputError("audio holds NaN or infinite samples")
