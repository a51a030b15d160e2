"""The audio that the demo learns from: generated clips, or at most an hour drawn from a folder.

Both write a plain folder of audio for ``hear-m2d prepare``, and three other clips as examples.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import synth
from tqdm import tqdm

from hear_m2d.audio import find_audio
from hear_m2d.utils.files import atomic_write_text

EXAMPLES = 3
CLIP_S = 5.0
LONGEST_S = 600.0  # no single file gives more than this share of the hour
MEASURED = 5_000  # number of headers that are read; the length of a larger folder is an estimate


@dataclass(frozen=True)
class Corpus:
    """What was taken.

    Attributes:
        about: One sentence for readers.
        clips: Files in the folder.
        minutes: Their total length.
        examples: Names of the example clips, in the folder ``examples`` beside the corpus.
    """

    about: str
    clips: int
    minutes: float
    examples: list[str]


def generate(out: Path, *, seed: int, clips: int, seconds: float = CLIP_S) -> Corpus:
    """Write generated clips to ``out/corpus`` and three more to ``out/examples``; existing clips are kept.

    Args:
        out: The demo's folder.
        seed: A clip depends only on this seed and its index.
        clips: How many to write.
        seconds: Length of each.
    """
    step = max(len(synth.KINDS) // EXAMPLES, 1)
    folders, examples = (out / "corpus", out / "examples"), []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    after = -(-clips // len(synth.KINDS)) * len(synth.KINDS)  # examples: not used in training
    wanted = [*range(clips), *(after + 1 + step * k for k in range(EXAMPLES))]
    for index in tqdm(wanted, desc="generating", unit=" clips", mininterval=1.0):
        kind = synth.KINDS[index % len(synth.KINDS)]
        path = folders[index >= clips] / f"{index:04d}_{kind}.flac"
        if index >= clips:
            examples.append(path.name)
        if not path.exists():
            partial = path.with_suffix(".partial")
            sound, _ = synth.clip(seed, index, seconds)
            sf.write(partial, sound, synth.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            partial.replace(path)
    minutes = clips * seconds / 60
    about = f"{clips} generated clips of {seconds:g} s, {minutes:.0f} minutes (seed {seed})"
    return _write_description(out, Corpus(about, clips, minutes, examples))


def draw(audio: Path, out: Path, *, seed: int, hours: float = 1.0) -> Corpus:
    """Draw files from a folder at random until they fill ``hours``, and link them into ``out/corpus``.

    Of a file longer than ten minutes, ten minutes from a random position are copied instead. Files that
    cannot be read and empty files are skipped and counted.

    Args:
        audio: A folder; it is searched with all its subfolders.
        out: The demo's folder.
        seed: Fixes the draw.
        hours: Maximum length of the drawn audio.

    Raises:
        ValueError: There is no usable audio.
    """
    files = find_audio(audio)
    if not files:
        raise ValueError(f"{audio} holds no audio files")
    rng = np.random.default_rng([seed, len(files)])
    order = [files[k] for k in rng.permutation(len(files))]
    names = {path: f"{number:05d}_{_plain(path.stem)}" for number, path in enumerate(files)}
    for folder in (out / "corpus", out / "examples"):
        shutil.rmtree(folder, ignore_errors=True)  # links and excerpts only: cheap to draw again
        folder.mkdir(parents=True)

    taken_s, seen_s, seen, taken, unreadable = 0.0, 0.0, 0, 0, 0
    left: list[tuple[Path, float]] = []
    for path, length in tqdm(_lengths(order[:MEASURED]), total=min(len(order), MEASURED), desc="drawing"):
        if length <= 0:
            unreadable += 1
            continue
        seen, seen_s = seen + 1, seen_s + length
        used = min(length, LONGEST_S)
        if taken_s + used > hours * 3600:
            left.append((path, length))
            continue
        _link_or_cut(
            path, out / "corpus" / names[path], start_s=rng.uniform(0, length - used), length_s=length
        )
        taken, taken_s = taken + 1, taken_s + used
    if not taken:
        raise ValueError(f"{audio} holds {len(files)} audio files, and none of them could be read")

    inside = [(path, 0.0) for path in sorted((out / "corpus").iterdir())]
    for path, length in (left + inside)[:EXAMPLES]:  # preferably files that are not used in training
        _link_or_cut(path, out / "examples" / names.get(path, path.stem), start_s=0.0, length_s=length)
    examples = sorted(path.name for path in (out / "examples").iterdir())
    whole_s = seen_s * len(files) / (seen + unreadable)
    roughly = "about " if len(files) > MEASURED else ""
    about = (
        f"{taken_s / 60:.1f} minutes of {roughly}{whole_s / 60:.1f}: {taken} of {len(files)} files"
        f" drawn by seed {seed}, at most {hours:g} h" + (f"; {unreadable} not readable" if unreadable else "")
    )
    return _write_description(out, Corpus(about, taken, taken_s / 60, examples))


def _lengths(files: list[Path]) -> Iterator[tuple[Path, float]]:
    """Return each file with its length in seconds; 0 if it cannot be read."""
    for path in files:
        try:
            found = sf.info(path)
            yield path, found.frames / found.samplerate
        except (sf.LibsndfileError, OSError, ZeroDivisionError):
            yield path, 0.0


def _link_or_cut(path: Path, target: Path, *, start_s: float, length_s: float) -> None:
    """Link a file, or write the excerpt of one that is too long."""
    if length_s <= LONGEST_S:
        target.with_name(target.name + path.suffix).symlink_to(path.resolve())
        return
    with sf.SoundFile(path) as file:
        file.seek(int(start_s * file.samplerate))
        audio = file.read(int(LONGEST_S * file.samplerate), dtype="float32", always_2d=True).mean(axis=1)
        sf.write(target.with_name(f"{target.name}.flac"), audio, file.samplerate, subtype="PCM_16")


def _plain(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:60]


def _write_description(out: Path, corpus: Corpus) -> Corpus:
    """Write the description beside the folder."""
    atomic_write_text(out / "corpus.json", json.dumps(asdict(corpus), indent=1))
    return corpus
