"""Hugging Face audio encoders with the HEAR API: ``--module hear_m2d.evaluation.adapters.transformers``.

`--model` is a folder with a saved model, or a name on the Hugging Face hub. Supported: wav2vec 2.0, HuBERT,
WavLM, the Audio Spectrogram Transformer (AST) and the encoder of Whisper. An embedding is the output of the
last layer:

================  ===========================================================  =================
model             scene: the mean over                                         one timestamp per
================  ===========================================================  =================
wav2vec 2.0, …    all frames; the audio is never padded                        20 ms
AST               the patches whose center is in the audio; not the padding,   100 ms
                  not the two special tokens
Whisper           the frames whose center is in the audio; not the silence     20 ms
                  that fills the 30 s
================  ===========================================================  =================

A timestamp is the center of the samples that a frame (in AST: a column of patches) is computed from, before
attention. Audio longer than the longest window of a model is cut into windows of equal length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hear_m2d.utils.errors import InputError

WAVEFORM_MODELS = ("wav2vec2", "hubert", "wavlm")
AST, WHISPER = "audio-spectrogram-transformer", "whisper"
MAX_WINDOW_S = 30.0
"""The longest window of the models on waveforms, which have no limit of their own."""
MAX_PASS_S = 120.0
"""Seconds of input in one pass through the network."""
UNUSED_WEIGHTS = ("decoder.", "masked_spec_embed")
"""Weights that may be missing from a checkpoint: no embedding depends on them."""


@dataclass(frozen=True)
class FrameGrid:
    """Where the frames of a network lie in the audio; all values are in samples."""

    first: float
    """Center of the first frame."""
    step: int
    """From one frame to the next."""
    needed: int
    """The shortest audio that has one frame."""
    window_frames: int
    """Frames of the longest window."""
    span: int
    """Samples that one frame reads; for a network with windows of one length, samples of a whole window."""
    fixed: bool
    """Whether the network takes windows of one length only; shorter audio is padded to it."""

    def count(self, samples: int) -> int:
        """Return the number of frames of an audio; at least 1."""
        return max(1, (samples - self.needed) // self.step + 1)

    def windows(self, samples: int) -> list[tuple[int, int, int]]:
        """Return the windows of an audio as (first sample, end sample, frames), of almost equal length."""
        frames = self.count(samples)
        number = -(-frames // self.window_frames)
        edges = [index * frames // number for index in range(number + 1)]
        spans = [self.span + (0 if self.fixed else (b - a - 1) * self.step) for a, b in pairwise(edges)]
        ends = [a * self.step + span for a, span in zip(edges, spans, strict=False)]
        ends[-1] = max(ends[-1], samples)  # the last samples have no frame, but enter the group norm
        return [(a * self.step, end, b - a) for (a, b), end in zip(pairwise(edges), ends, strict=True)]

    def centers(self, samples: int) -> Tensor:
        """Return the center of each frame of an audio, (frames,), float64."""
        return self.first + self.step * torch.arange(self.count(samples), dtype=torch.float64)


class TransformersEncoder(nn.Module):
    """A Hugging Face encoder behind the HEAR API.

    Args:
        network: The model, or the encoder of one, of :mod:`transformers`.
        extractor: Its feature extractor.

    Attributes:
        sample_rate: Hertz, from the feature extractor.
        scene_embedding_size: The width of the last layer.
        timestamp_embedding_size: The same.

    Raises:
        InputError: If the model is of an unsupported type.
    """

    def __init__(self, network: Any, extractor: Any) -> None:
        super().__init__()
        self.network = network.eval()
        self.extractor = extractor
        self.grid = frame_grid(network.config, extractor)
        self.sample_rate = int(extractor.sampling_rate)
        self.scene_embedding_size = self.timestamp_embedding_size = int(network.config.hidden_size)

    def frames(self, audio: Tensor) -> Tensor:
        """Return the embedding of each frame, (batch, frames, width), of audio (batch, samples).

        A clip's embedding does not depend on the other clips of the batch, which are all of one length:
        nothing is padded to the length of another clip, which the group norm of wav2vec 2.0 would notice.

        Raises:
            InputError: If the audio is not (batch, samples) with at least one clip and one sample.
        """
        if audio.ndim != 2 or audio.numel() == 0:
            raise InputError(f"audio must be (batch, samples), got the shape {tuple(audio.shape)}")
        samples = audio.shape[1]
        audio = nn.functional.pad(audio.float(), (0, max(0, self.grid.needed - samples)))
        begin, end, _ = self.grid.windows(samples)[0]
        clips_per_pass = max(1, int(MAX_PASS_S * self.sample_rate) // (end - begin))
        return torch.cat([self._pass(clips, samples) for clips in torch.split(audio, clips_per_pass)])

    def _pass(self, clips: Tensor, samples: int) -> Tensor:
        """Embed a few clips, window by window."""
        if not self.grid.fixed:
            clips = self._features(clips)  # standardizes the whole clip where the extractor says so
        found = []
        for begin, end, count in self.grid.windows(samples):
            window = clips[:, begin:end]
            output = self.network(self._features(window) if self.grid.fixed else window).last_hidden_state
            if self.network.config.model_type == AST:
                # (clips, 2 + rows · columns, width): the two special tokens, then row after row
                output = output[:, 2:].unflatten(1, (-1, self.grid.window_frames)).mean(1)
            found.append(output[:, :count])
        return torch.cat(found, dim=1)

    def _features(self, clips: Tensor) -> Tensor:
        """Return the feature extractor's output for clips (batch, samples) of one length."""
        arrays = list(clips.cpu().numpy())
        features = self.extractor(arrays, sampling_rate=self.sample_rate, return_tensors="pt")
        found: Tensor = features[self.extractor.model_input_names[0]]
        return found.to(clips.device)


def frame_grid(config: Any, extractor: Any) -> FrameGrid:
    """Compute where the frames of a model lie, from the strides of its convolutions and its front end.

    Args:
        config: The model's configuration.
        extractor: Its feature extractor.

    Raises:
        InputError: If the model is of an unsupported type.
    """
    rate = int(extractor.sampling_rate)
    if config.model_type in WAVEFORM_MODELS:
        span, step = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            span, step = span + (kernel - 1) * step, step * stride
        frames = int(MAX_WINDOW_S * rate) // step
        return FrameGrid((span - 1) / 2, step, needed=span, window_frames=frames, span=span, fixed=False)
    if config.model_type == WHISPER:
        # The transform and both convolutions are centered: frame i lies at i steps.
        frames, span = config.max_source_positions, int(extractor.n_samples)
        return FrameGrid(0.0, span // frames, needed=1, window_frames=frames, span=span, fixed=True)
    if config.model_type == AST:
        hop, length = rate // 100, rate // 40  # the 10 and 25 ms of Kaldi's filter bank, which does not pad
        first = (config.patch_size - 1) / 2 * hop + (length - 1) / 2
        return FrameGrid(
            first,
            step=config.time_stride * hop,
            needed=math.ceil(first) + 1,
            window_frames=(config.max_length - config.patch_size) // config.time_stride + 1,
            span=(config.max_length - 1) * hop + length,
            fixed=True,
        )
    known = ", ".join((*WAVEFORM_MODELS, AST, WHISPER))
    raise InputError(f"models of type {config.model_type!r} are not supported; supported are {known}")


def resolve_model(model: str) -> Path:
    """Return the folder of a model: `model` itself, or the hub's copy in the Hugging Face cache.

    `hear-m2d evaluate` and `validate` call it, because the official tools take only a path that exists.

    Raises:
        InputError: If `model` is neither a folder nor the name of a model on the hub, or the hub cannot be
            reached and the cache has no copy.
    """
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    try:
        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(model, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{model} is not a folder, and not a model on the Hugging Face hub: {reason}"
        ) from error
    return folder


def load_model(model_file_path: str = "") -> TransformersEncoder:
    """Load a model saved by :mod:`transformers`; its weights must be complete.

    Args:
        model_file_path: A folder, or a name on the Hugging Face hub.

    Raises:
        InputError: If there is no such model, its type is not supported, or weights are missing.
    """
    import transformers

    if not model_file_path:
        raise InputError("no model is given: --model must be a folder or a name on the Hugging Face hub")
    folder = resolve_model(model_file_path)
    extractors: Any = transformers.AutoFeatureExtractor
    networks: Any = transformers.AutoModel
    try:
        extractor = extractors.from_pretrained(folder)
        frame_grid(transformers.AutoConfig.from_pretrained(folder), extractor)
        network, report = networks.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except OSError as error:
        raise InputError(f"{folder} is not a model of transformers: {str(error).splitlines()[0]}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED_WEIGHTS))
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    if network.config.model_type == WHISPER:
        network = network.encoder
    return TransformersEncoder(network, extractor)


def get_scene_embeddings(audio: Tensor, model: TransformersEncoder) -> Tensor:
    """Return the mean over the frames, (batch, width), of audio (batch, samples)."""
    return model.frames(audio).mean(1)


def get_timestamp_embeddings(audio: Tensor, model: TransformersEncoder) -> tuple[Tensor, Tensor]:
    """Return the frames, (batch, frames, width), and their centers in milliseconds, (batch, frames)."""
    frames = model.frames(audio)
    times = model.grid.centers(audio.shape[1]) * (1000 / model.sample_rate)
    return frames, times.to(frames).expand(len(frames), -1)
