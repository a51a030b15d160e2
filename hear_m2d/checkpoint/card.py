"""The model card: a README.md for the hub, made from what a checkpoint says about itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from hear_m2d.model.config import ModelConfig
from hear_m2d.model.timestamps import frame_step

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Licences by the hub's own short names; any other is "other", with its name beside it.
HUB_LICENCES = (
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsl-1.0 cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 ecl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 "
    "lgpl-3.0 isc mpl-2.0 ms-pl ncsa openrail osl-3.0 pddl odbl odc-by unlicense wtfpl zlib unknown"
)
NAMES = {"m2d": "Masked Modeling Duo (M2D)", "msm_mae": "MSM-MAE"}
PAPERS = """\
```bibtex
@inproceedings{niizumi2023m2d,
  title     = {Masked Modeling Duo: Learning Representations by Encouraging Both Networks
               to Model the Input},
  author    = {Niizumi, Daisuke and Takeuchi, Daiki and Ohishi, Yasunori and Harada, Noboru
               and Kashino, Kunio},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year      = {2023},
  doi       = {10.1109/ICASSP49357.2023.10097236}
}
@inproceedings{niizumi2022msmmae,
  title     = {Masked Spectrogram Modeling using Masked Autoencoders for Learning General-purpose
               Audio Representation},
  author    = {Niizumi, Daisuke and Takeuchi, Daiki and Ohishi, Yasunori and Harada, Noboru
               and Kashino, Kunio},
  booktitle = {HEAR: Holistic Evaluation of Audio Representations (NeurIPS 2021 Competition)},
  series    = {Proceedings of Machine Learning Research},
  volume    = {166},
  year      = {2022}
}
```"""


def model_card(config: ModelConfig, *, name: str = "", description: str = "") -> ModelCard:
    """Return the card.

    Args:
        config: What the checkpoint says about itself.
        name: ``owner/repo``, for the line that loads it.
        description: Text under the title, in Markdown: what the model was made for, and by whom.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence = config.licence.strip()
    short = licence.lower().replace(" ", "-")
    known = short in HUB_LICENCES.split()
    data = ModelCardData(
        license=short if known else "other",
        license_name=None if known else re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "unnamed",
        library_name="hear-m2d",
        pipeline_tag="feature-extraction",
        tags=["audio", "audio-embeddings", "self-supervised", "hear", "hear-m2d", config.kind],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(config, name, description)}")


def _text(config: ModelConfig, name: str, description: str) -> str:
    encoder, frontend = config.encoder, config.frontend
    step_ms = frame_step(encoder.patch_size[1], frontend.hop_ms) * frontend.hop_ms
    facts = {
        "kind": NAMES.get(config.kind, config.kind),
        "sample rate": f"{frontend.sample_rate} Hz",
        "input": f"{' x '.join(map(str, encoder.input_size))} (mel bins x frames of {frontend.hop_ms:g} ms)",
        "patch": f"{encoder.patch_size[0]} x {encoder.patch_size[1]}",
        "encoder": f"{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads",
        "embedding size": f"{encoder.column_width} (scene and timestamps)",
        "timestamps": f"every {step_ms:g} ms",
        "mean, std of the log-mel": f"{config.mean:g}, {config.std:g}",
        "classes": f"{len(config.labels)}" if config.labels else "none: it embeds",
        "licence": config.licence,
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    training = json.dumps(dict(config.training), indent=2, ensure_ascii=False)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", training)), default=0))
    sections = [
        f"# {name.rpartition('/')[2] or 'An audio embedding model'}",
        description.strip()
        or f"A {_cell(facts['kind'])} network that turns sound into vectors, for "
        "hear-m2d and anything that speaks the HEAR API.",
        f"| | |\n|---|---|\n{rows}",
        "## Use",
        f'```python\nimport hear_m2d\n\nmodel = hear_m2d.load_model("hf://{name or "OWNER/REPO"}")\n'
        "scene = hear_m2d.get_scene_embeddings(audio, model)  # audio: (clips, samples) in [-1, 1], "
        "at model.sample_rate\nframes, ms = hear_m2d.get_timestamp_embeddings(audio, model)\n```",
        "## Training",
        f"{fence}json\n{training}\n{fence}" if config.training else "The checkpoint does not say.",
        "## Method",
        PAPERS,
    ]
    return "\n\n".join(sections) + "\n"


def _cell(value: str) -> str:
    """Return a text that cannot leave its place in a Markdown table: a checkpoint may come from anyone."""
    return re.sub(r"([|<>\[\]`\\])", r"\\\1", " ".join(value.split()))
