"""What the page says in words: of the network, of each picture, and how to read them."""

from __future__ import annotations

import math
from typing import Any

from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.visualize.source import Source

DB = 10 / math.log(10)  # of power, per natural logarithm


def facts_of_page(
    source: Source, *, attention: bool, sounds: bool, why_no_sound: str | None
) -> dict[str, Any]:
    """Return what the template needs beside the clips."""
    config, painter = source.model.config, source.painter
    encoder, frontend = config.encoder, config.frontend
    seconds = encoder.input_size[1] * frontend.hop_ms / 1000
    sizes = {
        "encoder": f"{encoder.depth} blocks, {encoder.width} wide, "
        f"{encoder.heads} head{'s' * (encoder.heads > 1)}",
        "input": f"{encoder.input_size[0]} mel bins × {encoder.input_size[1]} frames ({seconds:g} s) "
        f"at {frontend.sample_rate} Hz",
        "patches": f"{encoder.patch_size[0]} mel bins × {encoder.patch_size[1]} frames "
        f"({encoder.patch_size[1] * frontend.hop_ms:g} ms): {encoder.grid[0]} × {encoder.grid[1]} of them",
    }
    if painter is not None:
        sizes["hidden"] = f"{100 * painter.mask_ratio:g} % of the patches"
    if config.licence != "unknown":
        sizes["licence"] = config.licence
    missing = [] if painter else [source.why_no_painting]
    if why_no_sound:
        missing.append(f"No sounds of the reconstructions: {why_no_sound}")
    return {
        "name": source.name,
        "kind": source.kind,
        "training": source.training,
        "sizes": sizes,
        "reading": _reading(source, attention=attention, sounds=sounds and why_no_sound is None),
        "missing": missing,
    }


def _reading(source: Source, *, attention: bool, sounds: bool) -> list[str]:
    said = []
    if source.painter is not None:
        said.append(
            "Reconstruction: above left the log-mel spectrogram; beside it what the encoder was given, where "
            "grey patches, chosen at random, were hidden; below left what the decoder painted into them, the "
            "visible patches left as they are; beside it how far off it is, in standard deviations of the "
            "training data."
        )
        if source.painter.norm_pix_loss:
            said.append(
                "This network learned to paint standardised patches. Each painted patch was given its true "
                "mean and spread back: the shape within a patch is its own, the loudness is not."
            )
        if sounds:
            said.append(
                "Sounds: made from log-mel spectrograms by inverse mel and Griffin-Lim. A log-mel keeps no "
                "phase, so compare the reconstruction with the original that went through log-mel and back. "
                "A network that is unsure paints the mean of what is likely: smooth patches, a noise."
            )
    if attention:
        class_token = source.model.config.encoder.class_token
        said.append(
            "Attention: how strongly a query (outlined in blue) takes from each patch, in orange over the "
            "log-mel in grey, one row a block, one column a head; all patches are visible. What exceeds an "
            "even share is coloured (by its square root), up to the panel's largest, which is above it"
            + (", with the share that goes to the class token." if class_token else ".")
        )
    return said


def part_sentence(frames: int, length_s: float, start_s: float, model: HearModel) -> str:
    """Say which part of a file is shown."""
    end_s = min(start_s + frames * model.config.frontend.hop_ms / 1000, length_s)
    if start_s == 0 and end_s > length_s - 0.005:
        return f"The whole file, {length_s:.2f} s."
    return f"{start_s:.2f} to {end_s:.2f} s of {length_s:.2f} s: one window of the network."


def error_sentence(error: float, guess: float, *, norm: bool) -> str:
    """Say how good a reconstruction is beside the easiest guess."""
    easiest = "each patch's own mean" if norm else "the training data's mean"
    return (
        f"Mean absolute error at the hidden patches: {error:.2f} standard deviations. Painting {easiest} "
        f"would give {guess:.2f}."
    )


def sound_titles(off: float) -> list[str]:
    """Return the titles of the four sounds, in their order.

    Args:
        off: Mean absolute difference of the round trip's log-mel, natural logarithm of power.
    """
    return [
        "original",
        f"original, through log-mel and back (off by {DB * off:.1f} dB)",
        "what the encoder sees, hidden patches silent",
        "reconstruction",
    ]
