"""`--decode scaled`: the part of a large photo's size that its crops need, at which libjpeg decodes it directly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.views import Views

DECODES = ("exact", "scaled")
MARGIN = 2.0  # pixels that a crop keeps for each of its view's: with fewer the views become visibly softer


def scale_for(recipe: Views, params: dict[str, ViewParams]) -> Tensor:
    """(N,) int64: the largest of 1, 2, 4 and 8 at which every view's crop still has MARGIN pixels, in both directions,
    for each pixel of the view."""
    kept = [params[view.name].box[:, 2:].amin(dim=1) / (MARGIN * view.size) for view in recipe if view.parent is None]
    least = torch.stack(kept).amin(dim=0)
    return 1 + (least >= 2).long() + 2 * (least >= 4).long() + 4 * (least >= 8).long()


def whole_blocks(size: tuple[int, int]) -> int:
    """The largest scale of a JPEG that is turned or mirrored after decoding: what a side's last pixel stands for in
    part lies elsewhere then."""
    common = math.gcd(*size)
    return common & -common
