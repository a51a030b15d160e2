"""Tiny generated tasks in the HEAR on-disk format: tones, as small as the official kit can learn from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000
PITCHES = {"a": 220.0, "b": 440.0, "c": 880.0, "d": 1760.0}


def tone(pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * (pitch * rng.uniform(0.97, 1.03) * time + rng.uniform()))


def write_task(
    folder: Path,
    *,
    name: str,
    embedding_type: str,
    prediction_type: str,
    split_mode: str,
    duration: float | None,
    evaluation: list[str],
    labels: list[Any],
    clips: dict[str, dict[str, tuple[np.ndarray, Any]]],
    **more: Any,
) -> Path:
    """Write one task; `clips` is {split: {file: (waveform, target)}}."""
    task = folder / f"{name}-v1.0-full"
    task.mkdir(parents=True)
    metadata = {
        "task_name": name,
        "version": "v1.0",
        "mode": "full",
        "embedding_type": embedding_type,
        "prediction_type": prediction_type,
        "split_mode": split_mode,
        "splits": list(clips),
        "sample_duration": duration,
        "evaluation": evaluation,
        **more,
    }
    (task / "task_metadata.json").write_text(json.dumps(metadata))
    rows = [f"{index},{label}" for index, label in enumerate(sorted(labels))]
    (task / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]) + "\n")
    for split, files in clips.items():
        audio = task / str(RATE) / split
        audio.mkdir(parents=True)
        (task / f"{split}.json").write_text(json.dumps({file: target for file, (_, target) in files.items()}))
        for file, (waveform, _) in files.items():
            noise = np.random.default_rng(len(file)).normal(0, 0.01, len(waveform))
            soundfile.write(audio / file, np.clip(waveform + noise, -1, 1), RATE, subtype="PCM_16")
    return task


def scene_multiclass(
    folder: Path, *, name: str = "tones", sizes: tuple[int, int, int] = (24, 12, 12)
) -> Path:
    rng = np.random.default_rng(1)
    clips: dict[str, dict[str, tuple[np.ndarray, Any]]] = {}
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        chosen = [list(PITCHES)[index % 4] for index in range(size)]
        clips[split] = {
            f"{split}{index:02d}.wav": (tone(PITCHES[label], 1.0, rng), [label])
            for index, label in enumerate(chosen)
        }
    return write_task(
        folder,
        name=name,
        embedding_type="scene",
        prediction_type="multiclass",
        split_mode="trainvaltest",
        duration=1.0,
        evaluation=["top1_acc", "mAP", "d_prime"],
        labels=list(PITCHES),
        clips=clips,
    )


def scene_multilabel(folder: Path) -> Path:
    """Clips of 0.3 to 1.3 s with none to three of the tones, no `sample_duration`."""
    rng = np.random.default_rng(2)
    clips: dict[str, dict[str, tuple[np.ndarray, Any]]] = {}
    for split, size in (("train", 32), ("valid", 16), ("test", 16)):
        clips[split] = {}
        for index in range(size):
            seconds = rng.uniform(0.3, 1.3)
            chosen = [label for bit, label in enumerate(PITCHES) if index >> bit & 1]
            waveform = sum(tone(PITCHES[label], seconds, np.random.default_rng(index)) for label in chosen)
            silence = np.zeros(round(seconds * RATE))
            clips[split][f"{split}{index:02d}.wav"] = (silence + 0.5 * waveform, chosen)
    return write_task(
        folder,
        name="chords",
        embedding_type="scene",
        prediction_type="multilabel",
        split_mode="trainvaltest",
        duration=None,
        evaluation=["mAP", "aucroc"],
        labels=list(PITCHES),
        clips=clips,
    )


def events(folder: Path, *, seconds: float = 6.0) -> Path:
    """The DCASE kind: tones of half a second, scored by their onsets."""
    rng = np.random.default_rng(3)
    clips: dict[str, dict[str, tuple[np.ndarray, Any]]] = {}
    for split, size in (("train", 6), ("valid", 3), ("test", 3)):
        clips[split] = {}
        for index in range(size):
            waveform = np.zeros(round(seconds * RATE))
            target = []
            for place, label in enumerate(["a", "c", "d"] * 2):
                start = 0.15 + place * (seconds - 0.2) / 6 + rng.uniform(0, 0.2)
                sound = tone(PITCHES[label], 0.6, rng)
                first = round(start * RATE)
                waveform[first : first + len(sound)] += sound[: len(waveform) - first]
                target.append({"label": label, "start": 1000 * start, "end": 1000 * (start + 0.6)})
            clips[split][f"{split}{index:02d}.wav"] = (waveform, target)
    return write_task(
        folder,
        name="bells",
        embedding_type="event",
        prediction_type="multilabel",
        split_mode="trainvaltest",
        duration=seconds,
        evaluation=["event_onset_200ms_fms", "segment_1s_er"],
        labels=["a", "c", "d"],
        clips=clips,
    )


def folds(folder: Path) -> Path:
    """Three folds with integer labels."""
    rng = np.random.default_rng(4)
    pitches = list(PITCHES.values())
    clips: dict[str, dict[str, tuple[np.ndarray, Any]]] = {}
    for fold in range(3):
        clips[f"fold{fold:02d}"] = {
            f"fold{fold:02d}-{index:02d}.wav": (tone(pitches[index % 3], 1.0, rng), [index % 3])
            for index in range(12)
        }
    return write_task(
        folder,
        name="strokes",
        embedding_type="scene",
        prediction_type="multiclass",
        split_mode="new_split_kfold",
        duration=1.0,
        evaluation=["top1_acc", "mAP"],
        labels=[0, 1, 2],
        clips=clips,
    )
