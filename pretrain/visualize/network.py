"""What a network learned, to see and hear: reconstructions, their sound, attention; files and one page."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from hear_m2d.audio import find_audio, read_audio
from hear_m2d.model.encoder import patchify, unpatchify
from hear_m2d.model.frontend import LOG_EPS
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.objectives.masking import mask_noise
from hear_m2d.pretrain.objectives.msm_mae import MSMMAE
from hear_m2d.pretrain.visualize.attention import attention_maps
from hear_m2d.pretrain.visualize.figures import draw_attention, draw_reconstruction
from hear_m2d.pretrain.visualize.griffin_lim import sounds_of_log_mels, why_no_sound
from hear_m2d.pretrain.visualize.page import Clip, claim_folder, write_page
from hear_m2d.pretrain.visualize.queries import Point, Query, choose_queries, locate
from hear_m2d.pretrain.visualize.source import Source, open_source
from hear_m2d.pretrain.visualize.text import error_sentence, facts_of_page, part_sentence, sound_titles
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write

logger = logging.getLogger(__name__)

MAX_CLIPS = 20  # in one page: each brings 2 to 4 MB
SOUNDS = ("original", "round-trip", "what-it-saw", "reconstruction")  # in the order of their titles
SPREAD = 4  # layers and heads, unasked


@dataclass(frozen=True)
class Look:
    """What to draw.

    Attributes:
        queries: Which patches look; none: the class token, the loudest patch, and some far from it.
        layers: Block indices, negative ones allowed; empty: some from first to last; ``all``.
        heads: Head indices, None for the mean over heads; empty: the mean and some heads; ``all``.
        start_s: Where in each file the window begins, seconds.
        seed: Of the masks.
        sounds: Whether to make sounds of reconstructions.
        attention: Whether to draw attention.
    """

    queries: tuple[Point, ...] = ()
    layers: tuple[int, ...] | str = ()
    heads: tuple[int | None, ...] | str = ()
    start_s: float = 0.0
    seed: int = 0
    sounds: bool = True
    attention: bool = True


@dataclass(frozen=True)
class Result:
    """What a call made.

    Attributes:
        page: The page.
        clips: What was drawn.
        left_out: A sentence for each file that could not be.
    """

    page: Path
    clips: list[Clip]
    left_out: list[str]


@dataclass(frozen=True)
class _Window:
    """One window of one file: samples (n,), log-mel (1, 1, mels, frames) in whole patches, queries."""

    samples: Tensor
    x: Tensor
    frames: int  # of sound; the rest of x is padding
    length_s: float  # of the whole file
    queries: list[Query]


def visualize(name: str, audio: Sequence[Path], out: Path, look: Look | None = None) -> Result:
    """Draw what a network makes of some files.

    Args:
        name: A run's folder, or a checkpoint as for ``load_model``.
        audio: Files, and folders of them; one window of each file is drawn.
        out: A new or empty folder, or one of an earlier call. Each file gets a folder in it: ``<stem>``, with
            a number where several would have one name.
        look: What to draw.

    Raises:
        ValueError: No network, nothing to draw, an index that is not there, or no file could be drawn.
    """
    look = look or Look()
    claim_folder(out)
    paths = _files(audio)
    source = open_source(name)
    config = source.model.config.encoder
    layers = _indices(look.layers, config.depth, "--layers", "blocks")
    heads = _heads(look.heads, config.heads)
    if source.painter is None and not look.attention:
        raise InputError(f"there is nothing to draw of {name} without attention: {source.why_no_painting}")
    silent = why_no_sound() if look.sounds and source.painter else None
    if silent:
        logger.warning("no sounds: %s", silent)
    facts = facts_of_page(source, attention=look.attention, sounds=look.sounds, why_no_sound=silent)
    clips: list[Clip] = []
    left_out: dict[Path, str] = {}
    for index, (path, folder) in enumerate(zip(paths, _folders(paths, out), strict=True)):
        try:
            window = _window(source.model, path, look)
        except (ValueError, OSError) as error:
            left_out[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
            continue
        clip = Clip(
            path.name, part_sentence(window.frames, window.length_s, look.start_s, source.model), folder
        )
        if not clips:  # marks the folder as ours before anything else lies in it
            write_page(out, [], facts=facts, done=False)
        _remove_old(folder)
        if source.painter is not None:
            sounds = look.sounds and silent is None
            _reconstruct(clip, source, source.painter, window, look, index=index, sounds=sounds)
        if look.attention:
            _attend(clip, source.model, window, look, layers=layers, heads=heads)
        clips.append(clip)
        logger.info("drew %s", path)
    if not clips:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"no file could be drawn: {next(iter(left_out.values()))}{more}")
    # The page is made to be handed on: the folders of this machine are nobody's business.
    told = [sentence.replace(str(path), path.name) for path, sentence in left_out.items()]
    return Result(write_page(out, clips, facts=facts, left_out=told), clips, list(left_out.values()))


def _window(model: HearModel, path: Path, look: Look) -> _Window:
    config, frontend = model.config.encoder, model.config.frontend
    samples = torch.from_numpy(read_audio(path, model.sample_rate))
    length_s = len(samples) / model.sample_rate
    first = round(look.start_s * model.sample_rate)
    if first >= len(samples):
        raise InputError(
            f"{path} lasts {length_s:.2f} s: there is nothing to draw from --start {look.start_s:g}"
        )
    patch = config.patch_size[1]
    most = config.grid[1] * patch
    # Half a window more than the frames need, so that the last ones hear what follows and no reflection.
    samples = samples[first : first + most * frontend.hop_length + frontend.n_fft]
    with torch.no_grad():
        x = model.standardised(samples[None])[:, None, :, :most]  # (1, 1, mels, frames)
    frames = x.shape[-1]
    x = torch.nn.functional.pad(x, (0, -frames % patch))  # as the model pads: with the mean
    queries: list[Query] = []
    if look.attention:
        sizes = {"encoder": config, "frontend": frontend, "start_s": look.start_s}
        if look.queries:
            columns = x.shape[-1] // patch
            queries = [locate(point, columns=columns, **sizes) for point in look.queries]  # type: ignore[arg-type]
        else:
            queries = choose_queries(x, **sizes)  # type: ignore[arg-type]
    sound = samples[: max(1, (frames - 1) * frontend.hop_length)]
    return _Window(sound, x, frames, length_s, queries)


def _reconstruct(
    clip: Clip, source: Source, painter: MSMMAE, window: _Window, look: Look, *, index: int, sounds: bool
) -> None:
    """Draw the reconstruction, and make the sounds of it."""
    model, frames = source.model, window.frames
    config, patch_size = model.config, model.config.encoder.patch_size
    rows, columns = config.encoder.grid
    # A short clip is padded to the input's length, as in training; only its own frames are shown.
    x = torch.nn.functional.pad(window.x, (0, columns * patch_size[1] - window.x.shape[-1]))
    painted, mask = painter.reconstruct(x, mask_noise(look.seed, index, 1, rows * columns))
    hidden = mask.as_grid()[..., None].bool()  # (1, patches, 1)
    true = patchify(x, patch_size)

    def whole(patches: Tensor) -> Tensor:
        return unpatchify(patches, patch_size, rows)[0, 0, :, :frames]

    merged = whole(torch.where(hidden, painted, true))
    seen = whole(torch.where(hidden, torch.nan, true))
    x = x[0, 0, :, :frames]
    error = (merged - x).abs()
    clip.reconstruction = clip.folder / "reconstruction.png"
    panels = {"the sound": x, "what the encoder sees": seen, "the reconstruction": merged, "its error": error}
    draw_reconstruction(panels, clip.reconstruction, frontend=config.frontend, start_s=look.start_s)
    # What the easiest guess would give: the patch's own mean where it was given back, else the training mean.
    guess = true.mean(-1, keepdim=True).expand_as(true) if painter.norm_pix_loss else torch.zeros_like(true)
    where = seen.isnan()
    clip.error = error_sentence(
        float(error[where].mean()), float((whole(guess) - x).abs()[where].mean()), norm=painter.norm_pix_loss
    )
    if not sounds:
        return
    floor = (float(np.log(LOG_EPS)) - config.mean) / config.std  # digital silence
    standardised = torch.stack([x, torch.nan_to_num(seen, nan=floor), merged])
    logmels = standardised * config.std + config.mean
    waves = sounds_of_log_mels(logmels, model.frontend, seed=look.seed)[:, : len(window.samples)]
    off = float((model.frontend(waves[:1])[0, :, :frames] - logmels[0]).abs().mean())
    loudest = max(1.0, float(waves.abs().max()), float(window.samples.abs().max()))
    for name, title, wave in zip(SOUNDS, sound_titles(off), [window.samples, *waves], strict=True):
        clip.sounds[title] = clip.folder / f"{name}.wav"
        with atomic_write(clip.sounds[title]) as file:  # all by one factor, so that they compare
            soundfile.write(file, (wave / loudest).numpy(), model.sample_rate, format="WAV", subtype="PCM_16")


def _attend(
    clip: Clip,
    model: HearModel,
    window: _Window,
    look: Look,
    *,
    layers: Sequence[int],
    heads: Sequence[int | None],
) -> None:
    """Draw one picture a query."""
    tokens = [query.token for query in window.queries]
    maps = attention_maps(model.encoder, window.x, queries=tokens, layers=layers)
    for number, query in enumerate(window.queries):
        picture = clip.folder / f"attention-{number + 1}.png"
        draw_attention(
            window.x[0, 0], maps[:, :, number], query, picture, layers=layers, heads=heads,
            encoder=model.config.encoder, frontend=model.config.frontend, start_s=look.start_s,
        )  # fmt: skip
        name = query.name if query.name not in clip.attention else f"{query.name} ({number + 1})"
        clip.attention[name] = picture


def _files(audio: Sequence[Path]) -> list[Path]:
    """Return files, with folders replaced by the audio in them."""
    found: list[Path] = []
    for path in audio:
        inside = find_audio(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no audio")
        found += inside
    found = list(dict.fromkeys(found))
    if not found:
        raise InputError("no audio was given: give files, or folders of them")
    if len(found) > MAX_CLIPS:
        raise InputError(f"{len(found)} files are too many for one page: give at most {MAX_CLIPS}")
    return found


def _folders(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return a folder in ``out`` for each file, by its stem; no two are one to any file system."""
    taken, found = {"index.html"}, []
    for path in paths:
        stem = re.sub(r"[^\w .()+-]", "_", path.stem).strip(" .")[:80] or "clip"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        found.append(out / name)
    return found


def _remove_old(folder: Path) -> None:
    """Remove what an earlier call drew of this file: there may have been more queries."""
    sounds = [folder / f"{name}.wav" for name in SOUNDS]
    for path in [*folder.glob("attention-*.png"), *sounds, folder / "reconstruction.png"]:
        path.unlink(missing_ok=True)


def _indices(asked: tuple[int, ...] | str, count: int, option: str, what: str) -> list[int]:
    if asked == "all":
        return list(range(count))
    if not asked:
        return sorted({round(i * (count - 1) / (SPREAD - 1)) for i in range(SPREAD)})
    for index in asked:
        if not -count <= int(index) < count:
            raise InputError(f"{option} {index}: there are {count} {what}, 0 to {count - 1}")
    return list(dict.fromkeys(int(index) % count for index in asked))


def _heads(asked: tuple[int | None, ...] | str, count: int) -> list[int | None]:
    if not asked or isinstance(asked, str):
        some = _indices("all" if asked else (), count, "--heads", "heads")
        return [None, *some] if count > 1 else [*some]  # the mean of one head is that head
    for head in asked:
        if head is not None and not -count <= head < count:
            raise InputError(f"--heads {head}: there are {count} heads, 0 to {count - 1}")
    return list(dict.fromkeys(None if head is None else head % count for head in asked))
