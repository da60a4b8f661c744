"""A picture of the features in two dimensions, coloured by class: PCA, t-SNE or UMAP."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.letters import drawable
from saccade.evaluation.features import Features

MAX_POINTS, MAX_NAMES = 3000, 20
HALO = withStroke(linewidth=2.5, foreground="white")


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """(N, count) coordinates of L2-normalised features along their strongest directions, and each one's share."""
    x = F.normalize(features.double(), dim=1)
    x = x - x.mean(0)
    variance, directions = torch.linalg.eigh(x.T @ x)
    chosen = directions[:, -count:].flip(1)
    return x @ chosen, variance[-count:].flip(0) / variance.sum().clamp(min=1e-30)


def layout(features: Tensor, by: str, seed: int = 0) -> tuple[Tensor, tuple[str, str]]:
    """(N, 2) coordinates of L2-normalised features (N, D), and what the axes are. UserError without the library."""
    if by == "pca":
        points, share = principal_components(features)
        return points, (f"first component ({share[0]:.0%} of the variance)", f"second component ({share[1]:.0%})")
    unit = F.normalize(features.float(), dim=1).numpy()
    name = {"tsne": "t-SNE", "umap": "UMAP"}[by]
    try:
        if by == "tsne":
            from sklearn.manifold import TSNE

            few = max(1.0, min(30.0, (len(unit) - 1) / 3))  # its perplexity must be below the number of points
            found = TSNE(metric="cosine", init="random", perplexity=few, random_state=seed).fit_transform(unit)
        else:
            umap = import_module("umap")  # which need not be there, for a type checker neither
            found = umap.UMAP(metric="cosine", random_state=seed).fit_transform(unit)
    except ImportError as error:
        package = "scikit-learn" if by == "tsne" else "umap-learn"
        raise UserError(f"--plot-by {by} needs {package}: pip install {package}; or use --plot-by pca.") from error
    return torch.as_tensor(found), (f"{name} 1", f"{name} 2")


def plot_features(
    features: Features, classes: Sequence[str] | None, path: Path, title: str, by: str = "pca", seed: int = 0
) -> None:
    """Write the scatter as a PNG, each class's name where its images lie densest; of many images every n-th is drawn,
    of many classes none is named."""
    step = -(-len(features) // MAX_POINTS)
    points, axis_names = layout(features.features if by == "pca" else features.features[::step], by, seed)
    points, labels = points[::step] if by == "pca" else points, features.labels[::step]
    numbers = labels.unique().tolist()
    figure = Figure(figsize=(8, 6.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    fonts: dict[str, FontProperties] = {}
    for i, number in enumerate(map(int, numbers)):
        mine = points[labels == number]
        name, font = _lettered(classes[number] if classes and number < len(classes) else str(number), 8)
        fonts[name] = font
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=min(30.0, max(7.0, 9000 / len(points))),
            color=hsv_to_rgb((i / len(numbers), 0.85, 0.6 + 0.3 * (i % 2))),
            label=name,
            linewidths=0,
            alpha=0.8,
        )
        if len(numbers) <= MAX_NAMES:
            near = torch.cdist(mine.double(), mine.double()).sort(1).values[:, : len(mine) // 3 + 1]
            x, y = mine[near.mean(1).argmin()].tolist()
            axes.text(x, y, name, font=font, ha="center", va="center", path_effects=[HALO])
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    title, font = _lettered(title, 10)
    axes.set_title(title, font=font)
    if len(numbers) <= MAX_NAMES:
        legend = figure.legend(loc="outside right upper", fontsize=8, markerscale=2, frameon=False)
        for text in legend.get_texts():
            text.set_fontproperties(fonts[text.get_text()])
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _lettered(text: str, size: int) -> tuple[str, FontProperties]:
    """The text as it can be drawn, as it stands (a $ begins no formula), and its font."""
    text, file = drawable(text)
    return text.replace("$", r"\$"), FontProperties(fname=file, size=size)
