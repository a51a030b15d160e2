"""Finding and decoding audio files: any libsndfile format, any rate, any channels → mono float32.

Decoding is strict: a file that cannot be read whole is an :class:`AudioError` that names the file and
says why. Whoever reads many files catches it, counts it and goes on.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from hear_m2d.utils.errors import InputError

Reason = Literal["corrupt", "truncated", "empty", "non-finite"]

# What libsndfile reads and people call audio. Left out: headerless .raw and .vox, whose rate and width are
# anyone's guess, and .mat, which is mostly not sound.
# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".ircam", ".mp1", ".mp2",
    ".mp3", ".mpga", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf",
    ".snd", ".sph", ".svx", ".voc", ".w64", ".wav", ".wave", ".wavex", ".wve", ".xi",
))
# fmt: on

_BLOCK = 1 << 20  # values per read: a header that promises more than there is must not allocate it
# Rates that are taken for sound, hertz: from slowed-down seismograms to bats. A header that lies beyond them
# would have a short file resampled to hours, or a filter made as long as the file.
_RATES = (100, 10_000_000)
# How libsndfile notes that sound is cut off: in a chunk (WAV, AIFF, SVX, AU, WVE), in the file (W64, RF64).
_SHORT_DATA = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)"
    r"|^\s*Data length (\d+) should be (\d+)",
    re.MULTILINE,
)
_FRAMES = re.compile(r"^\s*Frames\s*:\s*(\d+)", re.MULTILINE)
_SLACK_BYTES = 64  # some writers count their header as sound
_MP3_SLACK = 2 * 1152  # samples: the decoder's delay and padding


class AudioError(ValueError):
    """A file that does not decode to sound.

    Args:
        path: The file.
        reason: One word for the report.
        detail: The rest of the sentence.
    """

    def __init__(self, path: str | os.PathLike[str], reason: Reason, detail: str) -> None:
        super().__init__(f"{os.fspath(path)} is {reason}: {detail}")
        self.path = os.fspath(path)
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, Reason, str]]:
        return AudioError, (self.path, self.reason, self.detail)


@dataclass(frozen=True)
class Sound:
    """A decoded file.

    Attributes:
        samples: The waveform, (samples,), float32, at the rate asked for.
        file_rate: The file's own rate, hertz.
        channels: How many were averaged.
    """

    samples: NDArray[np.float32]
    file_rate: int
    channels: int


def find_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the audio files under a folder, by their suffix.

    Symbolic links are followed, to folders too, each folder once. Names that start with a dot are skipped.

    Args:
        folder: A folder, or a single audio file.

    Returns:
        Their paths, sorted by the path relative to ``folder`` with ``/`` between its parts.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It is a file whose suffix no audio format has.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"there is no {root}; give a folder of audio files, or one audio file")
    if not root.is_dir():
        if root.suffix.lower() not in AUDIO_SUFFIXES:
            raise InputError(
                f"{root} is no audio file by its suffix; known: {' '.join(sorted(AUDIO_SUFFIXES))}"
            )
        return [root]
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        facts = os.stat(place)  # noqa: PTH116
        if (facts.st_dev, facts.st_ino) in seen:  # a link back into what was walked already
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            path
            for name in files
            if not name.startswith(".")
            and (path := Path(place) / name).suffix.lower() in AUDIO_SUFFIXES
            and path.is_file()
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_audio(
    path: str | os.PathLike[str], sample_rate: int, *, content: bytes | None = None
) -> NDArray[np.float32]:
    """Decode a file whole, average its channels and resample it.

    Args:
        path: A file in any format of libsndfile.
        sample_rate: The rate wanted, in hertz.
        content: The file's bytes, where they lie somewhere else (in an archive, in a table): ``path`` is then
            only the name that errors give.

    Returns:
        The waveform, (samples,), in [-1, 1] but for files that store louder floating-point samples.

    Raises:
        AudioError: The file is corrupt, shorter than its header says, without samples, or not finite.
        OSError: The file cannot be opened.
    """
    return read_sound(path, sample_rate, content=content).samples


def read_sound(path: str | os.PathLike[str], sample_rate: int, *, content: bytes | None = None) -> Sound:
    """Do what :func:`read_audio` does, and say also what the file was like.

    Args:
        path: A file in any format of libsndfile.
        sample_rate: The rate wanted, in hertz.
        content: As for :func:`read_audio`.

    Raises:
        AudioError: The file is corrupt, shorter than its header says, without samples, or not finite.
        OSError: The file cannot be opened.
    """

    def reopen() -> IO[bytes]:
        return open(path, "rb") if content is None else io.BytesIO(content)  # noqa: PTH123

    with reopen() as file:  # libsndfile would say "System error." for every file that cannot be opened
        if not file.read(1):
            raise AudioError(path, "empty", "it holds no bytes")
    # As bytes, where names are bytes: soundfile cannot spell one that is not UTF-8.
    named = os.fsencode(path) if os.name == "posix" else path
    try:
        with soundfile.SoundFile(named if content is None else reopen()) as sound:
            rate, kind, declared, notes = sound.samplerate, sound.format, sound.frames, sound.extra_info
            channels = sound.channels
            if not _RATES[0] <= rate <= _RATES[1]:
                raise AudioError(path, "corrupt", f"its header states a rate of {rate} hertz")
            blocks = []
            frames = max(_BLOCK // channels, 1)
            while len(block := sound.read(frames, dtype="float32", always_2d=True)):  # (frames, channels)
                blocks.append(_mono(block))
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise AudioError(path, "corrupt", _plain(error)) from error
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(audio) == 0:
        raise AudioError(path, "empty", "it holds no samples")
    if missing := _missing(reopen, kind, notes, declared, len(audio)):
        raise AudioError(path, "truncated", missing)
    if not np.isfinite(audio).all():
        raise AudioError(path, "non-finite", "it holds NaN or infinite samples")
    if rate != sample_rate:
        decoded = len(audio)
        audio = soxr.resample(audio, rate, sample_rate, quality="HQ")
        if len(audio) == 0:
            raise AudioError(
                path, "empty", f"its {decoded} samples at {rate} hertz are none at {sample_rate}"
            )
        if not np.isfinite(audio).all():  # by the filter's overshoot
            raise AudioError(path, "non-finite", "its samples are too loud to be resampled")
    return Sound(np.ascontiguousarray(audio, dtype=np.float32), rate, channels)


def _mono(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average channels, (frames, channels) → (frames,)."""
    if block.shape[1] <= 2:  # the same numbers, twenty times as fast as numpy's mean over so short an axis
        return block[:, 0] if block.shape[1] == 1 else (block[:, 0] + block[:, 1]) * np.float32(0.5)
    mixed: NDArray[np.float32] = block.mean(axis=1)
    return mixed


def _missing(reopen: Callable[[], IO[bytes]], kind: str, notes: str, declared: int, decoded: int) -> str:
    """Say what a file's header promises and the file does not hold; nothing where it is whole.

    Ogg, PAF, PVF, SD2 and IRCAM state no length, and are read as far as they go.
    """
    for found in _SHORT_DATA.findall(notes):
        promised, held = (int(number) for number in found if number)
        if held + _SLACK_BYTES < promised and not _unknown(promised):
            return f"its header promises {promised} bytes of sound, it holds {held}"
    if kind == "VOC" and "truncated" in notes:
        return "its last block ends past the end of the file"
    if kind == "MP3":
        if missing := _missing_of_mp3(reopen):
            return missing
        if decoded + _MP3_SLACK >= declared or not _first_of_mp3(reopen)[1]:
            return ""
    if kind in ("AVR", "RF64", "MPC2K"):
        declared = max([declared, *map(int, _FRAMES.findall(notes))])
    if kind == "NIST":
        with reopen() as file:
            stated = re.search(rb"^sample_count -i (\d{1,12})", file.read(1024), re.MULTILINE)
        declared = max(declared, int(stated[1]) if stated else 0)
    return f"its header promises {declared} samples, {decoded} decode" if decoded < declared else ""


def _unknown(size: int) -> bool:
    """Return whether a size is what a program writes that streams to a pipe: the largest, or just less."""
    return any(0 <= most - size <= 1 << 16 for most in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def _first_of_mp3(reopen: Callable[[], IO[bytes]]) -> tuple[int, bytes]:
    """Return where an MP3's first frame begins, after its tag, and the note in it that states a length."""
    with reopen() as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3" and len(head) == 10:  # its size: four bytes of seven bits
            tag = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        file.seek(tag)
        first = file.read(4096)
    at = max(first.find(b"Xing"), first.find(b"Info"))
    return tag, first[at:] if at >= 0 else b""


def _missing_of_mp3(reopen: Callable[[], IO[bytes]]) -> str:
    """Compare the bytes that an MP3's first frame states with those that are there."""
    tag, note = _first_of_mp3(reopen)
    if len(note) < 16 or not note[7] & 2:
        return ""
    at = 12 if note[7] & 1 else 8  # after the number of frames, if that is there
    with reopen() as file:
        held = file.seek(0, io.SEEK_END) - tag
    promised = int.from_bytes(note[at : at + 4], "big")
    if held + _SLACK_BYTES < promised and not _unknown(promised):
        return f"its header promises {promised} bytes of sound, it holds {held}"
    return ""


def _plain(error: Exception) -> str:
    """Return libsndfile's own words, without the file's name, which ours has already."""
    words = getattr(error, "error_string", None) or str(error)
    return str(words).strip() or type(error).__name__
