"""A picture of the features: their two strongest directions, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from saccade.base.files import write_atomically
from saccade.evaluation.features import Features

MAX_POINTS, MAX_NAMES = 3000, 20


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """(N, count) coordinates of L2-normalised features along their strongest directions, and each one's share."""
    x = F.normalize(features.double(), dim=1)
    x = x - x.mean(0)
    variance, directions = torch.linalg.eigh(x.T @ x)
    chosen = directions[:, -count:].flip(1)
    return x @ chosen, variance[-count:].flip(0) / variance.sum().clamp(min=1e-30)


def plot_features(features: Features, classes: Sequence[str] | None, path: Path, title: str) -> None:
    """Write the scatter as a PNG; of many images every n-th is drawn, of many classes none is named."""
    points, share = principal_components(features.features)
    step = -(-len(points) // MAX_POINTS)
    points, labels = points[::step], features.labels[::step]
    numbers = labels.unique().tolist()
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    for i, number in enumerate(numbers):
        mine = points[labels == number]
        name = classes[number] if classes and number < len(classes) else str(number)
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=7,
            color=hsv_to_rgb((i / len(numbers), 0.85, 0.6 + 0.3 * (i % 2))),
            label=name,
            linewidths=0,
            alpha=0.7,
        )
    axes.set_xlabel(f"first component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second component ({share[1]:.0%})")
    axes.set_title(title, fontsize=10)
    if len(numbers) <= MAX_NAMES:
        figure.legend(loc="outside right upper", fontsize=8, markerscale=2, frameon=False)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
