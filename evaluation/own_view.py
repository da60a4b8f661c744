"""Without labels: how often an image's other view is found among those of all images (instance retrieval)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.evaluation.features import at_most, mode
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views

MAX_IMAGES = 500
RAW = nn.Sequential(nn.AdaptiveAvgPool2d(32), nn.Flatten())  # pixels, as small as kNN compares them


def two_views(recipe: Views) -> Views:
    """The recipe's first view twice, each with draws of its own."""
    first = recipe.views[0]
    return replace(recipe, views=tuple(replace(first, name=f"own_{i}", parent=None) for i in (1, 2)))


def own_view_found(
    backbones: tuple[nn.Module, ...],
    source: Source,
    recipe: Views,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    batch_size: int = 128,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each backbone: (N,) bool, whether the cosine-nearest of all second views is the image's own, and its (N, D)
    features of the first views; N: at most MAX_IMAGES, spread evenly, the same for all;
    unreadable ones are left out."""
    few = at_most(source, MAX_IMAGES)
    order = Order(len(few), batch_size, shuffle=False, drop_last=False)
    taken: list[list[tuple[Tensor, Tensor]]] = [[] for _ in backbones]
    with build_pipeline(few, two_views(recipe), order, device=device, workers=workers) as pipeline:
        for batch in pipeline:
            for backbone, found in zip(backbones, taken, strict=True):
                with mode(backbone, False), torch.no_grad():
                    first, second = (backbone(view).flatten(1).float().cpu() for view in batch.views.values())
                found.append((first, second))
    whole = torch.tensor([few.name_of(i) not in few.known_bad for i in range(len(few))])
    pairs = [tuple(torch.cat(part)[whole] for part in zip(*found, strict=True)) for found in taken]
    return [nearest_is_own(*pair) for pair in pairs], [first for first, _ in pairs]


def nearest_is_own(first: Tensor, second: Tensor) -> Tensor:
    """(N,) bool: of the rows of `second` the nearest by cosine to row i of `first` is row i; a tie is none."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    own = similarity.diagonal()[:, None]
    return (similarity >= own).sum(1) == 1
