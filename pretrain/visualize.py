"""Pictures of what an MSM-MAE learned: log-mel, what the encoder saw, what the decoder painted, the error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hear_m2d.audio import read_audio
from hear_m2d.checkpoint import build_model, read_checkpoint, read_tensors
from hear_m2d.encoder import patchify, unpatchify
from hear_m2d.files import atomic_write
from hear_m2d.model import HearModel
from hear_m2d.pretrain.batches import mask_noise
from hear_m2d.pretrain.build import build_objective
from hear_m2d.pretrain.msm_mae import MSMMAE
from hear_m2d.pretrain.recipe import Recipe
from hear_m2d.pretrain.run import OBJECTIVE_KEY, RunFolder


def draw_reconstructions(run: Path, audio: Sequence[Path], out: Path, *, seed: int = 0) -> Iterator[Path]:
    """Draw one picture per audio file.

    Args:
        run: Folder of an MSM-MAE run.
        audio: Files; the first window of each is drawn.
        out: Folder of the pictures, ``<stem>.png`` (``<stem>-<number>.png`` for files of one name).
        seed: Of the masks.

    Yields:
        Each picture's path.

    Raises:
        ValueError: The run is not finished or not of MSM-MAE, or a file cannot be read.
    """
    model, objective = open_run(run)
    out.mkdir(parents=True, exist_ok=True)
    times = Counter(path.stem for path in audio)
    for index, path in enumerate(audio):
        samples = torch.from_numpy(read_audio(path, model.sample_rate))
        with torch.no_grad():
            x = model.standardised(samples[None])[:, None, :, : model.config.encoder.input_size[1]]
        patch = model.config.encoder.patch_size[1]
        x = torch.nn.functional.pad(x, (0, model.config.encoder.input_size[1] - x.shape[-1]))
        x = x[..., : x.shape[-1] // patch * patch]
        rows, columns = model.config.encoder.grid
        painted, mask = objective.reconstruct(x, mask_noise(seed, index, 1, rows * columns))
        name = path.stem if times[path.stem] == 1 else f"{path.stem}-{index}"  # files of one name
        picture = out / f"{name}.png"
        title = path.name
        if objective.norm_pix_loss:
            title += "   (it learned standardised patches: their true mean and spread are put back)"
        _draw(x, painted, mask.as_grid(), model=model, title=title, picture=picture)
        yield picture


def open_run(run: Path) -> tuple[HearModel, MSMMAE]:
    """Return a finished MSM-MAE run's model and objective.

    Raises:
        ValueError: It is not finished, or not of MSM-MAE.
    """
    folder = RunFolder(run)
    for part in (folder.checkpoint, folder.objective):
        if not part.exists():
            raise ValueError(f"{run} is not a finished run: it has no {part.name}")
    record = folder.known()
    assert record is not None
    recipe = Recipe(**record["recipe"])
    if recipe.objective != "msm_mae":
        raise ValueError(f"{run} was trained with {recipe.objective}: only MSM-MAE paints pixels")
    model = build_model(read_checkpoint(folder.checkpoint))
    objective = build_objective(recipe)
    rest, _ = read_tensors(folder.objective, OBJECTIVE_KEY)
    encoder = {f"encoder.{name}": t for name, t in model.encoder.state_dict().items()}
    try:
        objective.load_state_dict({**encoder, **rest})
    except RuntimeError as error:
        raise ValueError(f"{folder.objective} is of another network: {error}") from error
    assert isinstance(objective, MSMMAE)
    return model, objective.eval()


def _draw(x: Tensor, painted: Tensor, grid: Tensor, *, model: HearModel, title: str, picture: Path) -> None:
    config = model.config
    rows = config.encoder.grid[0]
    hidden = grid[..., None].bool()  # (1, patches, 1)
    true = patchify(x, config.encoder.patch_size)
    merged = unpatchify(torch.where(hidden, painted, true), config.encoder.patch_size, rows)
    shown = unpatchify(
        torch.where(hidden, torch.full_like(true, np.nan), true), config.encoder.patch_size, rows
    )
    error = (merged - x).abs()
    seconds = x.shape[-1] * config.frontend.hop_ms / 1000
    low, high = np.nanpercentile(x.numpy(), [1, 99.5])
    panels: list[tuple[str, Tensor, dict[str, Any]]] = [
        ("log-mel", x, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("what the encoder sees", shown, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("reconstruction", merged, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("absolute error", error, {"vmin": 0, "vmax": 2, "cmap": "viridis"}),
    ]
    figure = Figure(figsize=(13, 2.6), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    for axis, (name, values, look) in zip(axes, panels, strict=True):
        image = axis.imshow(
            values[0, 0].numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, x.shape[-2]), **look
        )
        axis.set_facecolor("#d0d0d0")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("seconds")
        figure.colorbar(image, ax=axis, shrink=0.9)
    axes[0].set_ylabel("mel bin")
    figure.suptitle(title, fontsize=10)
    with atomic_write(picture) as file:
        figure.savefig(file, format="png", dpi=110)
