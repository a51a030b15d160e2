"""Check task folders before hours of embedding: what would make the official kit fail or score wrongly.

:func:`check_tasks` reads the metadata, the label vocabulary, the splits and the headers of the audio files,
and returns every finding at once. An *error* makes heareval 2021.1.3 fail or give a wrong score; a *warning*
does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hear_m2d.evaluation.archives.check_audio import check_audio
from hear_m2d.evaluation.archives.check_labels import check_labels
from hear_m2d.evaluation.archives.findings import Finding, error, warning
from hear_m2d.evaluation.archives.folder import METADATA, rate_folders, read_json_object, task_folders
from hear_m2d.utils.errors import InputError, unknown_name

SCENE_METRICS = ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc")
EVENT_METRICS = (
    "event_onset_200ms_fms",
    "event_onset_50ms_fms",
    "event_onset_offset_50ms_20perc_fms",
    "segment_1s_er",
)
"""The metrics of heareval, by embedding type."""
_KEYS = (
    "task_name",
    "embedding_type",
    "prediction_type",
    "split_mode",
    "splits",
    "sample_duration",
    "evaluation",
)
_CHOICES = {
    "embedding_type": ("scene", "event"),
    "prediction_type": ("multiclass", "multilabel"),
    "split_mode": ("trainvaltest", "new_split_kfold", "presplit_kfold"),
}
_SPLITS = ("train", "valid", "test")


def check_tasks(
    folder: Path, names: Sequence[str] = (), rate: int | None = None, *, jobs: int | None = None
) -> list[Finding]:
    """Check tasks and return all findings.

    Args:
        folder: A folder of tasks, or one task folder.
        names: Names of task folders; none means all.
        rate: The model's sample rate, in Hz: audio at this rate must be there. None checks all rates that are
            there.
        jobs: How many threads read headers; by default, twice the number of cores.

    Returns:
        The findings, task by task; none means that nothing was found.

    Raises:
        InputError: The folder holds no task, or a name is unknown.
    """
    findings: list[Finding] = []
    for task in task_folders(folder, names):
        findings += [replace(finding, task=task.name) for finding in _check_task(task, rate, jobs)]
    return findings


def has_errors(findings: Iterable[Finding]) -> bool:
    """Return whether a finding is an error."""
    return any(finding.level == "error" for finding in findings)


def summarize(findings: Sequence[Finding], *, limit: int = 5) -> list[str]:
    """Return a line for each finding; after ``limit`` findings of a kind in a task, their number."""
    lines: list[str] = []
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.task, finding.kind), []).append(finding)
    for (task, kind), group in kinds.items():
        lines += [str(finding) for finding in group[:limit]]
        if (more := len(group) - limit) > 0:
            lines.append(f"{group[0].level}: {task}: {more} more of this kind ({kind})")
    return lines


def _check_task(task: Path, rate: int | None, jobs: int | None) -> list[Finding]:
    try:
        metadata = read_json_object(task / METADATA)
    except InputError as problem:
        return [error("metadata", METADATA, str(problem))]
    findings = _check_metadata(metadata)
    if any(finding.kind == "splits" and finding.level == "error" for finding in findings):
        return findings  # nothing more can be read
    splits: dict[str, dict[str, Any]] = {}
    for split in metadata["splits"]:
        try:
            splits[split] = read_json_object(task / f"{split}.json")
        except InputError as problem:
            findings.append(error("split file", f"{split}.json", str(problem)))
    findings += check_labels(task, metadata, splits)
    rates = [rate] if rate is not None else rate_folders(task)
    if not rates:
        findings.append(error("rate", METADATA, "the task has no audio at any rate: download it again"))
    for each in rates:
        findings += check_audio(task, metadata, splits, each, jobs=jobs)
    return findings


def _check_metadata(metadata: dict[str, Any]) -> list[Finding]:
    def metadata_error(kind: str, message: str) -> Finding:
        return error(kind, METADATA, message)

    findings = [
        metadata_error("splits" if key == "splits" else "metadata", f"`{key}` is missing")
        for key in _KEYS
        if key not in metadata
    ]
    for key, choices in _CHOICES.items():
        if key in metadata and metadata[key] not in choices:
            findings.append(
                metadata_error(
                    "metadata", f"`{key}` must be one of {', '.join(choices)}, not {metadata[key]!r}"
                )
            )
    if metadata.get("embedding_type") == "event" and metadata.get("prediction_type") == "multiclass":
        findings.append(metadata_error("metadata", "the events of a task must be multilabel, not multiclass"))
    duration = metadata.get("sample_duration")
    if duration is not None and not (_is_number(duration) and duration > 0):
        findings.append(
            metadata_error("metadata", f"`sample_duration` must be seconds or null, not {duration!r}")
        )
    if "splits" in metadata:
        findings += _check_split_names(metadata)
    if "evaluation" in metadata:
        findings += _check_metrics(metadata)
    if metadata.get("embedding_type") == "event" and not metadata.get("use_scoring_for_early_stopping", True):
        points = 1
        params = metadata.get("evaluation_params") or {}
        for values in (params.get("event_postprocessing_grid") or {"default": [1, 2]}).values():
            points *= len(values)
        if points != 1:
            message = (
                "`use_scoring_for_early_stopping` is false: `event_postprocessing_grid` must have one point"
            )
            findings.append(metadata_error("metadata", f"{message}, not {points}"))
    return findings


def _check_split_names(metadata: dict[str, Any]) -> list[Finding]:
    splits = metadata["splits"]
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        return [error("splits", METADATA, f"`splits` must be a list of names, not {splits!r}")]
    if any("/" in split or "\\" in split or split.startswith(".") for split in splits):
        return [error("splits", METADATA, f"`splits` must hold plain names, not {splits!r}")]
    findings = []
    if len(set(splits)) < len(splits):
        findings.append(error("splits", METADATA, f"`splits` names a split twice: {', '.join(splits)}"))
    if metadata.get("split_mode") == "trainvaltest":
        for split in splits:
            if split not in _SPLITS:
                hint = " Call it `valid`." if split in ("val", "validation", "dev") else ""
                message = f"the split `{split}` is not used: trainvaltest has train, valid, test.{hint}"
                findings.append(warning("split names", METADATA, message))
        if lacking := [split for split in _SPLITS if split not in splits]:
            findings.append(error("split names", METADATA, f"`splits` lacks {', '.join(lacking)}"))
    elif len(splits) < 3:
        message = f"{len(splits)} folds: at least 3 are needed, for training, validation and test"
        findings.append(error("split names", METADATA, message))
    return findings


def _check_metrics(metadata: dict[str, Any]) -> list[Finding]:
    metrics = metadata["evaluation"]
    if not isinstance(metrics, list) or not metrics:
        return [error("metrics", METADATA, f"`evaluation` must be a list of metrics, not {metrics!r}")]
    findings = []
    for metric in metrics:
        if metric not in SCENE_METRICS + EVENT_METRICS:
            message = unknown_name("metric", str(metric), SCENE_METRICS + EVENT_METRICS)
            findings.append(error("metrics", METADATA, message))
        elif (metric in EVENT_METRICS) != (metadata.get("embedding_type") == "event"):
            kind = metadata.get("embedding_type")
            findings.append(
                error("metrics", METADATA, f"the metric {metric} cannot score tasks of type {kind}")
            )
    if "segment_1s_er" in metrics[:1]:
        message = "segment_1s_er as the first metric: the kit would choose the worst post-processing"
        findings.append(warning("metrics", METADATA, message))
    return findings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
