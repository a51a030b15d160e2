"""Text about a checkpoint: the output of `hear-m2d info`, notes, and the model card for the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hear_m2d.checkpoint.format import STORED, Checkpoint
from hear_m2d.model.config import ModelConfig
from hear_m2d.model.timestamps import frame_step

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TEMPLATE = Path(__file__).with_name("card.md")
# Licenses by the hub's own short names; any other is "other", with its name beside it.
HUB_LICENSES = (
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsl-1.0 cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 ecl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 "
    "lgpl-3.0 isc mpl-2.0 ms-pl ncsa openrail osl-3.0 pddl odbl odc-by unlicense wtfpl zlib unknown"
)
NAMES = {"m2d": "Masked Modeling Duo (M2D)", "msm_mae": "MSM-MAE"}


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the properties of a checkpoint that `hear-m2d info` shows, in its order."""
    config = checkpoint.config
    encoder, frontend = config.encoder, config.frontend
    patch_frames = encoder.patch_size[1]
    return {
        "file": str(checkpoint.path),
        "kind": config.kind,
        "code_base": config.code_base,
        "input": f"{encoder.input_size[0]}x{encoder.input_size[1]} (mel bins x frames)",
        "patch": f"{encoder.patch_size[0]}x{patch_frames}",
        "width": encoder.width,
        "blocks": encoder.depth,
        "heads": encoder.heads,
        "class_token": encoder.class_token,
        "parameters": sum(t.numel() for name, t in checkpoint.tensors.items() if name != "pos_embed"),
        "sample_rate": frontend.sample_rate,
        "hop_ms": frontend.hop_ms,
        "column_ms": patch_frames * frontend.hop_ms,
        "timestamp_step_ms": frame_step(patch_frames, frontend.hop_ms) * frontend.hop_ms,
        "scene_embedding_size": encoder.column_width,
        "timestamp_embedding_size": encoder.column_width,
        "mean": config.mean,
        "std": config.std,
        "classes": len(config.labels),
        "classifier_width": config.head_width,
        "projector": dataclasses.asdict(config.projector) if config.projector else None,
        "licence": config.licence,
        "training": {key: value for key, value in config.training.items() if key not in STORED},
        "provenance": dict(checkpoint.provenance),
        "notes": notes_of(checkpoint),
    }


def notes_of(checkpoint: Checkpoint) -> list[str]:
    """Return sentences about values that the file does not state, and about ignored tensors."""
    config, provenance = checkpoint.config, checkpoint.provenance
    notes = [note for note in (rate_is_a_guess(checkpoint), given_by_user(checkpoint)) if note]
    if named := [field for field in ("sample_rate", "input_frames") if provenance.get(field) == "name"]:
        notes.append(f"{' and '.join(named)} are from the file's name")
    if provenance.get("input_frames") == "default":
        frames = config.encoder.input_size[1]
        notes.append(f"nothing says the input length: {frames} frames taken; give input_frames= for more")
    for name, value, speech in (("mean", config.mean, -10.43), ("std", config.std, 4.24)):
        if provenance.get(name) == "default":
            hint = f" (AudioSet's; for speech try {name}={speech})" if config.kind == "m2d_s" else ""
            notes.append(f"the file stores no {name}: {value} taken{hint}; {name}= changes it")
    if provenance.get("labels") == "default":
        notes.append(
            f"the file does not name its {len(config.labels)} classes: they are numbered; "
            "hear-m2d convert --labels= names them"
        )
    if checkpoint.ignored:
        notes.append(f"left in the file: {', '.join(checkpoint.ignored)}")
    return [*notes, *checkpoint.remarks]


def rate_is_a_guess(checkpoint: Checkpoint) -> str:
    """Return a sentence if the sample rate is a guess, else an empty text."""
    if checkpoint.provenance.get("sample_rate") != "default":
        return ""
    rate = checkpoint.config.frontend.sample_rate
    return f"nothing says the sample rate: {rate} Hz taken; give sample_rate= if it is another"


def given_by_user(checkpoint: Checkpoint) -> str:
    """Return a sentence that names the values given by the user, else an empty text."""
    given = [name for name, source in checkpoint.provenance.items() if source == "user"]
    return f"given by the user: {', '.join(sorted(given))}" if given else ""


def rate_conflict(checkpoint: Checkpoint, sample_rate: int | None) -> str:
    """Return a sentence if the user's sample rate is not the file's, else an empty text."""
    stated = checkpoint.config.frontend.sample_rate
    if sample_rate in (None, stated) or checkpoint.provenance.get("sample_rate") == "default":
        return ""
    return (
        f"sample_rate={sample_rate} is given, but the file or its name says {stated} Hz: embeddings are "
        "wrong unless that is. The option says what the model was trained with; it does not resample"
    )


def model_card(config: ModelConfig, *, name: str = "", description: str = "") -> ModelCard:
    """Return the card of a checkpoint; ``name`` is ``owner/repo``, ``description`` is Markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    short = config.licence.strip().lower().replace(" ", "-")
    known = short in HUB_LICENSES.split()
    data = ModelCardData(
        license=short if known else "other",
        license_name=None if known else re.sub(r"[^a-z0-9.]+", "-", short).strip("-") or "unnamed",
        library_name="hear-m2d",
        pipeline_tag="feature-extraction",
        tags=["audio", "audio-embeddings", "self-supervised", "hear", "hear-m2d", config.kind],
    )
    encoder, frontend = config.encoder, config.frontend
    step_ms = frame_step(encoder.patch_size[1], frontend.hop_ms) * frontend.hop_ms
    kind = NAMES.get(config.kind, config.kind)
    rows = {
        "kind": kind,
        "sample rate": f"{frontend.sample_rate} Hz",
        "input": f"{' x '.join(map(str, encoder.input_size))} (mel bins x frames of {frontend.hop_ms:g} ms)",
        "patch": f"{encoder.patch_size[0]} x {encoder.patch_size[1]}",
        "encoder": f"{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads",
        "embedding size": f"{encoder.column_width} (scene and timestamps)",
        "timestamps": f"every {step_ms:g} ms",
        "mean, std of the log-mel": f"{config.mean:g}, {config.std:g}",
        "classes": f"{len(config.labels)}" if config.labels else "none: it embeds",
        "license": config.licence,
    }
    training = json.dumps(dict(config.training), indent=2, ensure_ascii=False)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", training)), default=0))
    usual = f"A {_cell(kind)} network that turns sound into vectors, for hear-m2d and other HEAR API tools."
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=name.rpartition("/")[2] or "An audio embedding model",
        description=description.strip() or usual,
        rows="\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        name=name or "OWNER/REPO",
        training=f"{fence}json\n{training}\n{fence}" if config.training else "The checkpoint does not say.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _cell(value: str) -> str:
    """Escape a text for a Markdown table: a checkpoint may come from an unknown source."""
    return re.sub(r"([|<>\[\]`\\])", r"\\\1", " ".join(value.split()))
