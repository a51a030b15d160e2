"""The smallest module with the HEAR API that learns something: mean and deviation of 32 log bands.

`load_model(fault=…)` gives one that breaks a rule, for tests of how that is reported.
"""

import os
import signal

import torch

HOP = 800  # samples: 50 ms


class Bands(torch.nn.Module):
    def __init__(self, sample_rate: int = 16000, fault: str = "") -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.fault = fault
        self.scene_embedding_size = 33 if fault == "size" else 64
        self.timestamp_embedding_size = 32

    def bands(self, audio: torch.Tensor) -> torch.Tensor:
        if self.fault == "raise":
            raise RuntimeError("this model always fails")
        if self.fault == "die on short clips" and audio.shape[1] < self.sample_rate:
            os.kill(os.getpid(), signal.SIGKILL)
        frames = audio.shape[1] // HOP
        frame = audio[:, : frames * HOP].reshape(audio.shape[0], frames, HOP)
        power = torch.fft.rfft(frame * torch.hann_window(HOP, device=audio.device)).abs()[..., 1:257]
        return power.reshape(*power.shape[:2], 32, 8).mean(-1).add(1e-3).log()


class SampleRateOnly(torch.nn.Module):
    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate


def load_model(model_file_path: str = "", sample_rate: int = 16000, fault: str = "") -> torch.nn.Module:
    if fault == "load":
        raise ValueError("no such fault")
    if fault == "load at run time":
        raise RuntimeError("no weights fit")
    if fault == "no attributes":
        return SampleRateOnly(sample_rate)
    if fault == "die at load":
        os.write(2, b"malloc: the last words\n")
        os._exit(7)
    if fault == "killed at load":
        os.kill(os.getpid(), signal.SIGKILL)
    return Bands(sample_rate=sample_rate, fault=fault).eval()


def get_timestamp_embeddings(audio: torch.Tensor, model: Bands) -> tuple[torch.Tensor, torch.Tensor]:
    bands = model.bands(audio)
    times = (torch.arange(bands.shape[1], device=audio.device) + 0.5) * (1000 * HOP / model.sample_rate)
    return bands, times.expand(len(bands), -1)


def get_scene_embeddings(audio: torch.Tensor, model: Bands) -> torch.Tensor:
    bands = model.bands(audio)
    return torch.cat([bands.mean(1), bands.std(1)], dim=1)
