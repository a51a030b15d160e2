"""Decode a generated set of files, and compare with ffmpeg: `make test-decoders`.

Every container and codec of docs/audio.md, 8 to 192 kHz, 1 to 6 channels, 8 to 64 bits. Lossless files must
be equal to ffmpeg's output; lossy ones must have its length and differ by at most 1e-3.
`make test-decoders ARGS="--write docs/audio.md"` also replaces the table in that page.
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
MARKS = ("<!-- decoders: begin -->", "<!-- decoders: end -->")
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


def wanted_of(path: Path, channels: int) -> np.ndarray:
    """Return what ffmpeg decodes, averaged over the channels; nothing if it cannot read its own file."""
    try:
        decoded = run("-i", path, "-f", "f64le", "-")
    except subprocess.CalledProcessError:
        decoded = b""
    return np.frombuffer(decoded, np.float64).reshape(-1, channels).mean(axis=1)


def check(path: Path, arguments: str, kind: dict) -> tuple[str, list[str], list[str]]:
    """Compare files of one kind; return a row of the table, what differs, and what cannot be compared."""
    count, worst, length_differences, problems, notes = 0, 0.0, set(), [], []
    for rate in kind["rates"]:
        for channels in kind["channels"]:
            try:
                make(path, arguments, rate, channels)
            except subprocess.CalledProcessError:
                continue  # the format has no such rate or number of channels
            name = f"{rate} Hz, {channels} channels"
            wanted = wanted_of(path, channels)
            if not len(wanted) and arguments.startswith(
                "|"
            ):  # its own AIFF through a pipe: the same as a file
                whole = path.with_stem("whole")
                make(whole, arguments[1:], rate, channels)
                wanted = wanted_of(whole, channels)
            if not len(wanted):  # its own 24-bit FLAC of 6 channels at 192 kHz
                notes.append(f"{name}: ffmpeg itself decodes nothing")
                continue
            count += 1
            try:
                samples = read_sound(path, rate).samples
            except AudioError as error:
                problems.append(f"{name}: {error.reason}: {error.detail}")
                continue
            shared = min(len(wanted), len(samples))
            difference = float(np.abs(samples[:shared] - wanted[:shared]).max(initial=0.0))
            worst = max(worst, difference)
            length_differences.add(len(samples) - len(wanted))
            if len(samples) != len(wanted) or difference > (TOLERANCE if kind["lossy"] else LOSSLESS):
                problems.append(f"{name}: {len(samples)} samples (ffmpeg {len(wanted)}), by {difference:.1e}")
    lengths = "equal" if length_differences == {0} else f"differ by {sorted(length_differences)}"
    words = arguments.replace("|", "to a pipe: ")
    return f"| {path.suffix[1:]} | `{words}` | {count} | {worst:.1e} | {lengths} |", problems, notes


def main() -> int:
    """Print a row per kind of file, perhaps into a page between two marks; return 1 if any differs."""
    if shutil.which("ffmpeg") is None:
        print("test-decoders needs the program ffmpeg, for example from the Debian package ffmpeg")
        return 1
    failed = 0
    rows = ["| file | ffmpeg's options | files | largest difference | lengths |", "|---|---|---|---|---|"]
    print("\n".join(rows))
    with tempfile.TemporaryDirectory() as folder:
        for suffix, arguments, kind in SET:
            row, problems, notes = check(Path(folder) / f"x.{suffix}", arguments, kind)
            rows.append(row)
            print(row, *(f"    {line}" for line in problems + notes), sep="\n", flush=True)
            failed += bool(problems or " | 0 | " in row)
    print(f"{len(SET)} kinds of files, {failed} differ from ffmpeg")
    if "--write" in sys.argv:
        page = Path(sys.argv[sys.argv.index("--write") + 1])
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text("\n".join([before + MARKS[0], "", *rows, "", MARKS[1]]) + rest.partition(MARKS[1])[2])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
