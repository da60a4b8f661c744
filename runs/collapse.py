"""Whether features still differ from image to image: two numbers of a batch, and the sentence when they fall."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saccade.models.quality import effective_rank, feature_std
from saccade.pipelines.sources import Source

MOST = 256  # features that are looked at
LOOKS = 500  # at most, in a run
LOOKED_AT = 8  # images that are compared before the first step
FALLEN = 0.1  # of the largest std of the run, or of what the rank is above 1
CONSTANT = 0.01, 1.05  # std and effective rank of what is one direction only


@torch.no_grad()
def spread(features: Tensor) -> tuple[float, float]:
    """The std and the effective rank (models/quality.py) of the first MOST of (N, D) features; NaN where they are no
    numbers. The device is waited for."""
    few = features[:MOST]
    if not bool(few.isfinite().all()):
        return float("nan"), float("nan")
    return feature_std(few), effective_rank(few)


def all_alike(source: Source) -> str | None:
    """A warning where the few images that are looked at are one and the same."""
    first = source.read_or_replace(0)[0]
    others = np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int)[1:].tolist()
    if not others or not all(np.array_equal(first, source.read_or_replace(i)[0]) for i in others):
        return None
    return (
        f"warning: {len(others) + 1} of the {len(source)} images were compared and are one and the same picture, from "
        "which nothing can be learned but the views; is this the right data?"
    )


class Watch:
    """Over a run of `steps`: says once when the features have fallen together."""

    def __init__(self, steps: int) -> None:
        self._std, self._rank, self._said = 0.0, 1.0, False
        self._stride, self._next = steps // LOOKS, 0

    def due(self, step: int) -> bool:
        """At most LOOKS times a run, evenly, so that looking costs nothing in a long one."""
        if step < self._next:
            return False
        self._next = step + self._stride
        return True

    def look(self, std: float, rank: float) -> str | None:
        """A warning, the first time it is one."""
        self._std, self._rank = max(self._std, std), max(self._rank, rank)
        fell = std < FALLEN * self._std or rank - 1 < FALLEN * (self._rank - 1)
        constant = std < CONSTANT[0] or rank < CONSTANT[1]
        if self._said or not (fell or constant):
            return None
        self._said = True
        return (
            f"warning: the features collapse: their std is {std:.3f} (it was {self._std:.3f}) and their effective rank "
            f"{rank:.1f} (it was {self._rank:.1f}), so that all images look nearly alike to the backbone; are the "
            "images different from each other? If they are, try a lower --lr or a larger --batch-size"
        )
