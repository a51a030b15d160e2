"""`hear-m2d visualize`: pictures and sounds of some files, and one page with everything in it."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import soundfile
import torch
from torch import Tensor

from hear_m2d.audio import find_audio, read_audio
from hear_m2d.model.hear_model import HearModel
from hear_m2d.pretrain.visualize.attention import attention_maps
from hear_m2d.pretrain.visualize.figures import draw_attention, draw_reconstruction
from hear_m2d.pretrain.visualize.network import Network, open_network
from hear_m2d.pretrain.visualize.queries import Point, Query, Window, choose_queries, locate
from hear_m2d.pretrain.visualize.reconstruct import SOUNDS, make_sounds, reconstruct, why_no_sound
from hear_m2d.utils.errors import InputError
from hear_m2d.utils.files import atomic_write, atomic_write_text, visible_names

logger = logging.getLogger(__name__)

PAGE = "index.html"
MARK = '<meta name="generator" content="hear-m2d visualize">'
MAX_CLIPS = 20  # clips in one page: each adds 2 to 4 MB
SPREAD = 4  # layers and heads, by default


@dataclass(frozen=True)
class VisualizeOptions:
    """What to draw."""

    queries: tuple[Point, ...] = ()  # empty: the class token, the loudest patch, and some far from it
    layers: tuple[int, ...] | None = None  # blocks, also negative; None: some from first to last; empty: all
    start_s: float = 0.0  # start of the window in each file


@dataclass
class Clip:
    """The drawing of one file; the template has the words."""

    name: str
    folder: Path  # of its pictures and sounds
    window: Window
    end_s: float  # of the window
    length_s: float  # of the file
    reconstruction: dict[str, Any] = field(default_factory=dict)  # picture and errors, if there is one
    sounds: dict[str, Path] = field(default_factory=dict)  # WAV files by name
    decibels: float = 0.0  # how far the round trip's log-mel is off
    attention: dict[str, Path] = field(default_factory=dict)  # pictures by the query's name


@dataclass(frozen=True)
class Result:
    """The result of a call."""

    page: Path
    clips: list[Clip]
    left_out: list[str]  # a sentence for each file that could not be drawn


def visualize(name: str, audio: Sequence[Path], out: Path, options: VisualizeOptions | None = None) -> Result:
    """Draw what a network learned, for some files.

    Args:
        name: A run's folder, or a checkpoint as for ``load_model``.
        audio: Files, and folders of them; one window of each file is drawn.
        out: A new or empty folder, or one of an earlier call. Each file gets a folder in it: ``<stem>``, with
            a number if several files would have one name.
        options: What to draw.

    Raises:
        InputError: There is no network, nothing to draw, no such layer, or no file could be drawn.
    """
    options = options or VisualizeOptions()
    _require_own_folder(out)
    paths = _find_files(audio)
    network = open_network(name)
    encoder = network.model.config.encoder
    layers = _layers(options.layers, encoder.depth)
    # The mean over heads (None), and some heads; the mean of one head is that head.
    heads: list[int | None] = [None, *_some(encoder.heads)] if encoder.heads > 1 else [0]
    silent = why_no_sound() if network.mae else ""
    if silent:
        logger.warning("no sounds: %s", silent)
    clips: list[Clip] = []
    left_out: dict[Path, str] = {}
    for index, (path, folder) in enumerate(zip(paths, _folders(paths, out), strict=True)):
        try:
            samples, x, length_s = _read_window(network.model, path, options.start_s)
            frames, x = x.shape[-1], torch.nn.functional.pad(x, (0, -x.shape[-1] % encoder.patch_size[1]))
            config, columns = network.model.config.frontend, x.shape[-1] // encoder.patch_size[1]
            window = Window(encoder, config, columns, options.start_s)
            queries = [locate(point, window) for point in options.queries] or choose_queries(x, window)
        except (ValueError, OSError) as error:
            left_out[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
            continue
        end_s = min(options.start_s + frames * config.hop_ms / 1000, length_s)
        clip = Clip(path.name, folder, window, end_s, length_s)
        if not clips:  # marks the folder as ours before other files are written
            _write_page(out, clips=[], network=network, why_no_sound=silent, left_out=[], done=False)
        sounds = [folder / f"{name}.wav" for name in SOUNDS]
        for old in [*folder.glob("attention-*.png"), *sounds, folder / "reconstruction.png"]:
            old.unlink(missing_ok=True)  # an earlier call may have had more queries
        if network.mae is not None:
            _draw_reconstruction(clip, network, x, frames, samples, index, sounds=not silent)
        _draw_attention(clip, network.model, x, queries, layers=layers, heads=heads)
        clips.append(clip)
        logger.info("drew %s", path)
    if not clips:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"no file could be drawn: {next(iter(left_out.values()))}{more}")
    # The page may be shared: it must not show folders of this machine.
    public = [sentence.replace(str(path), path.name) for path, sentence in left_out.items()]
    _write_page(out, clips=clips, network=network, why_no_sound=silent, left_out=public, done=True)
    return Result(out / PAGE, clips, list(left_out.values()))


def _write_page(out: Path, **values: Any) -> None:
    """Write ``out/index.html`` with pictures and sounds inside it; ``done=False``: it is not finished."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = _inline
    template = (resources.files("hear_m2d.pretrain.visualize") / "page.html.j2").read_text(encoding="utf-8")
    atomic_write_text(out / PAGE, environment.from_string(template).render(mark=MARK, **values))


def _inline(path: Path) -> str:
    """Return a PNG or WAV as a data URI."""
    kind = "image/png" if path.suffix == ".png" else "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _read_window(model: HearModel, path: Path, start_s: float) -> tuple[Tensor, Tensor, float]:
    """Return a window's samples, (samples,), its log-mel, (1, 1, mels, frames), and the file's length."""
    config, frontend = model.config.encoder, model.config.frontend
    samples = torch.from_numpy(read_audio(path, model.sample_rate))
    length_s, first = len(samples) / model.sample_rate, round(start_s * model.sample_rate)
    if first >= len(samples):
        raise InputError(f"{path} lasts {length_s:.2f} s: there is nothing to draw from --start {start_s:g}")
    most = config.grid[1] * config.patch_size[1]
    # Half a window more than the frames need, so that the last frames have real samples, not a reflection.
    samples = samples[first : first + most * frontend.hop_length + frontend.n_fft]
    with torch.no_grad():
        x = model.standardized(samples[None])[:, None, :, :most]
    return samples[: max(1, (x.shape[-1] - 1) * frontend.hop_length)], x, length_s


def _draw_reconstruction(
    clip: Clip, network: Network, x: Tensor, frames: int, samples: Tensor, index: int, *, sounds: bool
) -> None:
    assert network.mae is not None
    made = reconstruct(network.mae, x, frames, index=index)
    picture = clip.folder / "reconstruction.png"
    draw_reconstruction(made.panels, picture, clip.window)
    clip.reconstruction = {"picture": picture, "error": made.error, "baseline": made.baseline}
    if not sounds:
        return
    waves, clip.decibels = make_sounds(made, network.model, samples)
    for name, wave in waves.items():
        clip.sounds[name] = clip.folder / f"{name}.wav"
        with atomic_write(clip.sounds[name]) as file:
            rate = network.model.sample_rate
            soundfile.write(file, wave.numpy(), rate, format="WAV", subtype="PCM_16")


def _draw_attention(
    clip: Clip,
    model: HearModel,
    x: Tensor,
    queries: Sequence[Query],
    *,
    layers: Sequence[int],
    heads: Sequence[int | None],
) -> None:
    """Draw one picture for each query."""
    maps = attention_maps(model.encoder, x, queries=[query.token for query in queries], layers=layers)
    for number, query in enumerate(queries):
        picture = clip.folder / f"attention-{number + 1}.png"
        draw_attention(
            x[0, 0], maps[:, :, number], query, picture, layers=layers, heads=heads, window=clip.window
        )
        name = query.name if query.name not in clip.attention else f"{query.name} ({number + 1})"
        clip.attention[name] = picture


def _require_own_folder(out: Path) -> None:
    """Refuse a folder that is neither new, nor empty, nor of an earlier call."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder for --out")
    names, page = visible_names(out), out / PAGE
    if names and not (page.is_file() and MARK.encode() in page.read_bytes()[:1000]):
        raise InputError(f"{out} holds files of something else ({names[0]}): give an empty --out")


def _find_files(audio: Sequence[Path]) -> list[Path]:
    """Return files, with folders replaced by the audio in them."""
    files = [path for place in audio for path in (find_audio(place) if place.is_dir() else [place])]
    paths = list(dict.fromkeys(files))
    if not paths:
        raise InputError(f"there is no audio in {', '.join(map(str, audio))}: give files, or folders of them")
    if len(paths) > MAX_CLIPS:
        raise InputError(f"{len(paths)} files are too many for one page: give at most {MAX_CLIPS}")
    return paths


def _folders(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return a folder in ``out`` for each file, by its stem; names differ on every file system."""
    taken, folders = {PAGE}, []
    for path in paths:
        stem = re.sub(r"[^\w .()+-]", "_", path.stem).strip(" .")[:80] or "clip"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        folders.append(out / name)
    return folders


def _layers(asked: tuple[int, ...] | None, depth: int) -> list[int]:
    if asked is None:
        return _some(depth)
    for layer in asked:
        if not -depth <= layer < depth:
            raise InputError(f"--layers {layer}: there are {depth} blocks, 0 to {depth - 1}")
    return list(dict.fromkeys(layer % depth for layer in asked)) or list(range(depth))


def _some(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (SPREAD - 1)) for i in range(SPREAD)})
