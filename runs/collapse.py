"""Whether features still differ from image to image: two numbers of a batch, and the sentence when they fall."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.pipelines.sources import Source

MOST = 256  # features that are looked at
LOOKS = 500  # at most, in a run
LOOKED_AT = 8  # images that are compared before the first step
FALLEN = 0.1  # of the largest std of the run, or of what the rank is above 1
CONSTANT = 0.01, 1.05  # std and effective rank of what is one direction only


@torch.no_grad()
def spread(features: Tensor) -> tuple[float, float]:
    """(N, D) features -> the std of unit features, times sqrt(D), and their effective rank, RankMe.

    std: 1 where directions are spread evenly, 0 where all images have one (Chen and He 2021, SimSiam, section 4.1).
    RankMe: exp of the entropy of the singular values' shares (Garrido et al. 2023, arXiv 2210.02885, equation 1): from
    1, one direction, to min(N, D). The first MOST are looked at; the device is waited for.
    """
    unit = F.normalize(features[:MOST].double(), dim=1)
    if not bool(unit.isfinite().all()):
        return float("nan"), float("nan")
    std = unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5
    gram = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit
    singular = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float(std), float((-(share * share.log()).sum()).exp())


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
