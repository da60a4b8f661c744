"""Long-tailed training sets of balanced ones, as CACR's small-scale code draws them."""

from __future__ import annotations

import math

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.holdout import by_class
from saccade.pipelines.sources.source import Source

IMBALANCES = ("none", "linear", "exponential")
SEED = 2021  # the code's


def imbalanced(source: Source, kind: str, seed: int = SEED) -> Source:
    """Of class c of C the first b/10, or e^(b-10), of its images in a seeded shuffle; b = floor(10 c / C) + 1.

    "none" gives the source itself. Source: JegZheng/CACR-SSL @fbc9d94 --imbalanced (CIFAR-10: each class a step of ten,
    CIFAR-100: ten classes a step).
    """
    if kind == "none":
        return source
    if kind not in IMBALANCES:
        raise UserError(f"the imbalance {kind!r} is unknown; use one of {', '.join(IMBALANCES)}.")
    if source.labels is None or (source.labels < 0).any():
        raise UserError(
            f"{source.name} has images without a label, which imbalance={kind} needs of each; give --labels, or "
            "leave it out."
        )
    labels = np.asarray(source.labels)
    classes, kept = int(labels.max()) + 1, []
    for rows in by_class(labels):
        c = int(labels[rows[0]])
        np.random.RandomState(seed).shuffle(rows)
        step = 10 * c // classes + 1
        share = step / 10 if kind == "linear" else math.exp(step - 10)
        kept.append(rows[: math.floor(share * len(rows))])
    rows = np.sort(np.concatenate(kept))
    if not len(rows):
        raise UserError(
            f"{source.name}: imbalance={kind} leaves no image of {len(source)}; give more, or leave it out."
        )
    return source.subset(rows, f"{source.name}, {kind}ly imbalanced")
