"""Decode a generated set of files, and compare with ffmpeg: `make test-decoders`.

Every container and codec of docs/audio.md, 8 to 192 kHz, 1 to 6 channels, 8 to 64 bits. Lossless files must
be equal to ffmpeg's output; lossy ones must have its length and differ by at most 1e-3.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from hear_m2d.audio import AudioError, read_sound

TOLERANCE = 1e-3
SECONDS = 1.5
LOSSLESS = 1e-6  # of the mean over channels, in float32
FULL = {"lossy": False, "rates": (8000, 44100, 192000), "channels": (1, 2, 6)}
LOSSY = {"lossy": True, "rates": (16000, 44100), "channels": (1, 2)}
OPUS = LOSSY | {"rates": (48000,), "channels": (1, 2, 6)}
# Suffix, arguments of ffmpeg, what to vary; "|" means that ffmpeg writes to a pipe.
WAV_BITS = ("u8", "s16le", "s24le", "s32le", "f32le", "f64le", "s64le")
SET = [
    *[("wav", f"-c:a pcm_{bits}", FULL) for bits in WAV_BITS],
    *[("aiff", f"-c:a pcm_{bits}", FULL) for bits in ("s8", "s16be", "s24be", "s32be", "f32be", "f64be")],
    *[("caf", f"-c:a pcm_{bits}", FULL) for bits in ("s16be", "s24be", "f32be")],
    ("wav", "-c:a pcm_alaw", LOSSY), ("wav", "-c:a pcm_mulaw", LOSSY), ("au", "-c:a pcm_s16be", FULL),
    ("w64", "-c:a pcm_s24le", FULL), ("flac", "-sample_fmt s16", FULL), ("flac", "-sample_fmt s32", FULL),
    ("wav", "|-c:a pcm_s16le", FULL), ("aiff", "|-c:a pcm_s16be", FULL), ("caf", "|-c:a pcm_s16be", FULL),
    ("flac", "|-sample_fmt s16", FULL), ("flac", "|-sample_fmt s32", FULL),
    ("m4a", "-c:a alac", FULL | {"rates": (44100,)}), ("mka", "-c:a flac", FULL),
    ("wv", "-c:a wavpack", FULL), ("tta", "-c:a tta", FULL),
    ("mp3", "-c:a libmp3lame -b:a 128k", LOSSY), ("mp3", "-c:a libmp3lame -q:a 4", LOSSY),
    ("mp3", "-c:a libmp3lame -q:a 4 -write_xing 0", LOSSY), ("mp3", "|-c:a libmp3lame -q:a 4", LOSSY),
    ("mp3", "-c:a libmp3lame -b:a 64k -write_xing 0", LOSSY), ("mp2", "-c:a mp2", LOSSY),
    ("ogg", "-c:a libvorbis", LOSSY), ("opus", "-c:a libopus", OPUS), ("ogg", "|-c:a libopus", OPUS),
    ("m4a", "-c:a aac", LOSSY), ("mp4", "-c:a aac -movflags faststart", LOSSY), ("aac", "-c:a aac", LOSSY),
    ("wma", "-c:a wmav2", LOSSY), ("webm", "-c:a libopus", OPUS), ("webm", "-c:a libvorbis", LOSSY),
    ("webm", "|-c:a libopus", OPUS), ("mka", "-c:a aac", LOSSY),
    ("ac3", "-c:a ac3", LOSSY | {"rates": (44100,)}),
]  # fmt: skip


def run(*arguments: object, **keywords: object) -> bytes:
    """Run ffmpeg and return its output."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, **keywords).stdout


def make(path: Path, arguments: str, rate: int, channels: int) -> None:
    """Write noise and a chirp, different in each channel."""
    expression = "|".join(
        f"0.3*sin(2*PI*{200 + 100 * channel}*t*(1+t))+0.1*(random({channel})-0.5)"
        for channel in range(channels)
    )
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    source = ["-f", "lavfi", "-i", f"aevalsrc={expression}:s={rate}:d={SECONDS}:c={layout}"]
    if not arguments.startswith("|"):
        run(*source, *arguments.split(), path)
        return
    name = {"mka": "matroska"}.get(path.suffix[1:], path.suffix[1:])
    path.write_bytes(run(*source, *arguments[1:].split(), "-f", name, "-"))


def compare(path: Path, rate: int, channels: int) -> tuple[float, int, int]:
    """Return the largest difference to ffmpeg's output and both lengths."""
    try:
        decoded = run("-i", path, "-f", "f64le", "-")
    except subprocess.CalledProcessError:
        decoded = b""
    wanted = np.frombuffer(decoded, np.float64).reshape(-1, channels).mean(axis=1)
    samples = read_sound(path, rate).samples
    shared = min(len(wanted), len(samples))
    difference = np.abs(samples[:shared] - wanted[:shared]).max(initial=0.0)
    return float(difference), len(samples), len(wanted)


def main() -> int:
    """Print a line per kind of file; return 1 if any differs."""
    if shutil.which("ffmpeg") is None:
        print("test-decoders needs the program ffmpeg, for example from the Debian package ffmpeg")
        return 1
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for suffix, arguments, kind in SET:
            worst, count = 0.0, 0
            problems: list[str] = []
            notes: list[str] = []
            for rate in kind["rates"]:
                for channels in kind["channels"]:
                    path = Path(folder) / f"x.{suffix}"
                    try:
                        make(path, arguments, rate, channels)
                    except subprocess.CalledProcessError:
                        continue  # the format has no such rate or number of channels
                    count += 1
                    try:
                        difference, length, wanted = compare(path, rate, channels)
                    except AudioError as error:
                        problems.append(f"{rate} Hz, {channels} channels: {error.reason}: {error.detail}")
                        continue
                    if not wanted:  # of its own FLAC at 192 kHz, of its own AIFF through a pipe
                        notes.append(f"{rate} Hz, {channels} channels: ffmpeg itself decodes nothing")
                        continue
                    worst = max(worst, difference)
                    if length != wanted or difference > (TOLERANCE if kind["lossy"] else LOSSLESS):
                        problems.append(
                            f"{rate} Hz, {channels} channels: {length} samples (ffmpeg {wanted}), differs by "
                            f"{difference:.1e}"
                        )
            word = "FAIL" if problems or not count else "ok"
            print(f"{word:4} {suffix:5} {arguments:45} {count} files, {worst:.1e}", flush=True)
            for line in problems + notes:
                print(f"       {line}")
            failed += bool(problems or not count)
    print(f"{len(SET)} kinds of files, {failed} differ from ffmpeg")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
