"""A small real task in HEAR's on-disk format: spoken Arabic digits, zero to nine, by 30 speakers.

``spoken_digits.tar`` holds a part of the Arabic Speech Commands Dataset (A. Ghandoura, F. Hjabo and
O. Al Dakkak, 2021; CC BY 4.0) as Ogg/Opus; its ``README.txt`` says what was changed.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import soundfile as sf

ARCHIVE = Path(__file__).with_name("spoken_digits.tar")
FOLDER = "spoken_digits-v1-small"
ABOUT = (
    "Real recordings: which Arabic digit does a new speaker say? Part of Arabic Speech Commands (CC BY 4.0)."
)


def write_real_task(tasks_dir: Path) -> Path:
    """Unpack the task below ``tasks_dir``, with 16-bit WAV files of 16 kHz; a complete task is not changed.

    The folder appears under its name only when complete.
    """
    folder, partial = tasks_dir / FOLDER, tasks_dir.parent / f"{FOLDER}.partial"
    if folder.exists():
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            if not member.name.endswith(".ogg"):
                (partial / member.name).write_bytes(content.read())
                continue
            target = (partial / "16000" / member.name).with_suffix(".wav")
            target.parent.mkdir(parents=True, exist_ok=True)
            samples, rate = sf.read(io.BytesIO(content.read()))
            sf.write(target, samples, rate, subtype="PCM_16")
    tasks_dir.mkdir(parents=True, exist_ok=True)
    return partial.rename(folder)
