"""A 2-D map of a scene task's clips in the embedding space of several networks, for docs/results.md.

python benchmarks/embedding_map.py TASK LABEL=MODEL [LABEL=MODEL …] --out map.png

MODEL is what `--model` of `hear-m2d embed` takes. The map is t-SNE of the standardized scene embeddings.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hear_m2d
from hear_m2d.evaluation.linear.datasets import LabeledSet
from hear_m2d.evaluation.linear.embeddings import embed_task
from hear_m2d.evaluation.linear.probes import read_labeled
from hear_m2d.utils.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERPLEXITY = 20


def positions(embeddings: NDArray[Any]) -> NDArray[Any]:
    """Return (clips, 2): t-SNE with a fixed seed, from (clips, width)."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    tsne = TSNE(perplexity=PERPLEXITY, init="pca", random_state=0)
    points: NDArray[Any] = tsne.fit_transform(StandardScaler().fit_transform(embeddings))
    return points


def draw(maps: dict[str, NDArray[Any]], labeled: LabeledSet, out: Path) -> None:
    """Write one PNG with a panel for each network; the classes have the same color in each."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    size = 4.2
    figure, axes = plt.subplots(
        1, len(maps), figsize=(size * len(maps), size + 0.7), squeeze=False, layout="constrained"
    )
    colors = plt.get_cmap("tab10" if len(labeled.classes) <= 10 else "tab20")
    for (name, points), ax in zip(maps.items(), axes[0], strict=True):
        for index, label in enumerate(labeled.classes):
            rows = [row for row, clip in enumerate(labeled.clips) if clip.labels[0] == label]
            ax.scatter(*points[rows].T, s=14, color=colors(index), label=label, linewidths=0)
        ax.set_title(name, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False, markerscale=1.8
    )
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=100)


def main() -> None:
    """Embed the task with each network, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("models", nargs="+", metavar="LABEL=MODEL")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    maps = {}
    for pair in arguments.models:
        label, _, name = pair.partition("=")
        model = hear_m2d.load_model(name)
        labeled = read_labeled(arguments.task, model.sample_rate)
        maps[label] = positions(embed_task(model, labeled))
    draw(maps, labeled, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
