"""The process that decodes with PyAV. It runs as a script, so that it starts without importing torch.

Each line of standard input is a request in JSON: ``path`` or ``size`` (that many bytes follow),
``demuxer``, ``states_length``. Each line of standard output is a message in JSON: ``rate`` and ``channels``
(of the samples that follow), ``samples`` (that many float32 values follow), and last ``end`` (where the last
packet ends, bytes), or ``error`` with ``reason``.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import IO, Any

import av
import numpy as np

# Damage is an error, even where FFmpeg would ignore it.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
_LENGTH_SLACK_S = 0.15  # for lossy codecs: their containers also count delay and padding
_ALAC_FRAME = 4096  # samples
_HEADER_BYTES = 5000  # a Windows Media header is shorter than this
_LOSSLESS = ("pcm_", "flac", "alac", "wavpack", "ape", "tta")


def decode(source: Any, demuxer: str, states_length: bool, out: IO[bytes]) -> int:
    """Decode the sound of a file, write it as messages, and return where its last packet ends."""
    with av.open(source, format=demuxer, options=_STRICT, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise ValueError("it holds no sound")
        stream = container.streams.best("audio") or container.streams.audio[0]
        stream.codec_context.options = _STRICT
        if demuxer == "caf" and stream.codec_context.name == "alac":  # FFmpeg would cut the last packet twice
            stream.codec_context.flags2 |= av.codec.context.Flags2.skip_manual
        stated = float(stream.duration * stream.time_base) if stream.duration else None
        if (
            demuxer == "asf"
            and 0 <= container.size - (stated or 0) * (stream.bit_rate or 0) / 8 < _HEADER_BYTES
        ):
            stated = None  # FFmpeg's own estimate, from the file's size
        current, decoded_s, end = None, 0.0, 0
        for packet in container.demux(stream):
            end = max(end, (packet.pos or 0) + packet.size)
            for frame in packet.decode():
                # FFmpeg drops damaged FLAC frames.
                if demuxer == "flac" and frame.time is not None and abs(frame.time - decoded_s) > 0.001:
                    raise ValueError(f"sound is missing at {decoded_s:.3f} s")
                now = {"rate": frame.sample_rate, "channels": frame.layout.nb_channels}
                if now != current:
                    send(out, now)
                    current = now
                samples = to_float(to_array(frame), planar=frame.format.is_planar, channels=now["channels"])
                send(out, {"samples": len(samples)})
                out.write(samples.tobytes())
                decoded_s += len(samples) / frame.sample_rate
        slack = 0.001 if stream.codec_context.name.startswith(_LOSSLESS) else _LENGTH_SLACK_S
        if demuxer == "caf":  # it may count the padding of the last packet
            slack = _ALAC_FRAME / stream.rate
        if states_length and stated and decoded_s + slack < stated:
            raise EOFError(f"its header promises {stated:.2f} s, {decoded_s:.2f} s decode")
        return end


def to_array(frame: Any) -> Any:
    """Return the samples of a frame; PyAV itself does not convert integers of 64 bits."""
    if not frame.format.name.startswith("s64"):
        return frame.to_ndarray()
    count = frame.samples if frame.format.is_planar else frame.samples * frame.layout.nb_channels
    return np.stack([np.frombuffer(plane, np.int64, count) for plane in frame.planes])


def to_float(values: Any, *, planar: bool, channels: int) -> Any:
    """Return the mean over the channels, (samples,), float32 in [-1, 1]."""
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64) / -float(
            np.iinfo(values.dtype).min
        )
    values = values if planar else values.reshape(-1, channels).T  # (channels, samples)
    values = np.ascontiguousarray(values.T, dtype=np.float32)
    if channels <= 2:
        return values[:, 0] if channels == 1 else (values[:, 0] + values[:, 1]) * np.float32(0.5)
    return values.mean(axis=1)


def send(out: IO[bytes], message: dict[str, Any]) -> None:
    """Write a message."""
    out.write(json.dumps(message).encode() + b"\n")


def main() -> None:
    """Answer requests until the input ends."""
    requests, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the messages
    av.logging.set_level(av.logging.PANIC)
    for line in requests:
        request = json.loads(line)
        source = request["path"] if "path" in request else io.BytesIO(requests.read(request["size"]))
        answer: dict[str, Any]
        try:
            answer = {"end": decode(source, request["demuxer"], request["states_length"], out)}
        except EOFError as error:
            answer = {"error": str(error), "reason": "truncated"}
        except Exception as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            answer = {"error": " ".join(str(text).split()), "reason": "corrupt"}
        send(out, answer)
        out.flush()


if __name__ == "__main__":
    main()
