"""The audio of a task at one rate: every file's header is read, nothing is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import soundfile

from hear_m2d.evaluation.archives.findings import Finding, error, warning
from hear_m2d.evaluation.archives.folder import compare_files, rate_folders
from hear_m2d.utils.device import processors
from hear_m2d.utils.parallel import map_threads

Header = tuple[int, int, int]
"""Sample rate in Hz, channels, frames."""


def check_audio(
    task: Path,
    metadata: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, Any]],
    rate: int,
    *,
    jobs: int | None = None,
) -> list[Finding]:
    """Check the files that the splits list, and their headers, at one rate in Hz."""
    folder = task / str(rate)
    if not folder.is_dir():
        if not (rates := rate_folders(task)):
            return [error("rate", str(rate), "the task has no audio at any rate: download it again")]
        message = f"there is no audio at {rate} Hz; rates that are there: {', '.join(map(str, rates))}"
        return [error("rate", str(rate), f"{message}. Type: hear-m2d tasks resample {task} --rate {rate}")]
    files = compare_files(folder, splits, rate)
    findings = [error("missing file", f"{rate}/{name}", "the file is not there") for name in files.missing]
    findings += [warning("extra file", f"{rate}/{name}", "no split lists it") for name in files.extra]
    missing = set(files.missing)
    names = [f"{split}/{name}" for split, rows in splits.items() for name in rows]
    names = [name for name in names if name not in missing]
    headers: dict[str, Header] = {}
    for name, header in zip(names, read_headers([folder / name for name in names], jobs), strict=True):
        if isinstance(header, str):
            findings.append(error("unreadable file", f"{rate}/{name}", header))
            continue
        headers[name] = header
        own_rate, channels, frames = header
        if own_rate != rate:
            findings.append(error("wrong rate", f"{rate}/{name}", f"its sample rate is {own_rate} Hz"))
        if channels != 1:
            findings.append(error("not mono", f"{rate}/{name}", f"it has {channels} channels"))
        if frames == 0:
            findings.append(error("empty file", f"{rate}/{name}", "it has no samples"))
    return findings + _check_lengths(metadata, headers, rate)


def read_headers(paths: list[Path], jobs: int | None = None) -> list[Header | str]:
    """Return the header of each audio file, or why it cannot be read."""
    parts = [paths[first : first + 500] for first in range(0, len(paths), 500)]
    with closing(
        map_threads(_read_headers, parts, workers=jobs or 2 * processors(), budget=10**9)
    ) as results:
        return [header for headers in results for header in headers]


def _read_headers(paths: list[Path]) -> list[Header | str]:
    return [_read_header(path) for path in paths]


def _read_header(path: Path) -> Header | str:
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as problem:
        size = path.stat().st_size
        return f"it cannot be read ({size} bytes): {getattr(problem, 'error_string', problem)}"
    return info.samplerate, info.channels, info.frames


def _check_lengths(metadata: Mapping[str, Any], headers: Mapping[str, Header], rate: int) -> list[Finding]:
    """With `sample_duration`, the kit stacks clips to batches without padding: all must be equally long."""
    duration = metadata.get("sample_duration")
    if not headers or not isinstance(duration, int | float) or duration <= 0:
        return []
    usual, _ = Counter(frames for _, _, frames in headers.values()).most_common(1)[0]
    batch_size = max(1, int(0.7 * (120 / duration) * (16000 / rate)))  # heareval's own
    report = error if batch_size > 1 else warning
    findings = [
        report(
            "length",
            f"{rate}/{name}",
            f"it has {frames} samples, most files have {usual}: the kit cannot stack them",
        )
        for name, (_, _, frames) in headers.items()
        if frames not in (usual, 0)
    ]
    if abs(usual - duration * rate) > 1 + 0.01 * duration * rate:
        message = f"`sample_duration` is {duration} s, but most files at {rate} Hz last {usual / rate:.2f} s"
        findings.append(warning("length", "task_metadata.json", message))
    return findings
