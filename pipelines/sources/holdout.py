"""A part of the labelled images kept back for evaluation, where nobody made a split: the same in every run, by
class."""

from __future__ import annotations

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.source import Source

SHARE = 0.2
FEW = 2_000  # labelled images that are too few to lose a fifth of


def hold_out(source: Source, share: float = SHARE, seed: int = 0, alone: bool = False) -> tuple[Source, Source]:
    """(the others, the kept back) of the labelled images: `share` of each class, at least one. UserError without
    labels.

    A class of a single image stays with the others. alone: where labels are few, all of them twice, the same source:
    each is then tested against all others (kNN, leave one out).
    """
    if source.labels is None:
        raise UserError(
            f"{source.name} has neither labels nor a validation split beside it; give --labels CSV, or the "
            f"images to test "
            "on with --val-data."
        )
    if alone and int((source.labels >= 0).sum()) <= FEW:
        labelled = source.labelled()
        labelled.account.guess(
            f"no validation split lies beside {source.name} and its labels are few ({len(labelled):,}): each image is "
            "tested against all others (leave one out); --val-data names images to test on"
        )
        return labelled, labelled
    rng, kept = np.random.default_rng(seed), []
    for label in np.unique(source.labels[source.labels >= 0]):
        rows = rng.permutation(np.flatnonzero(source.labels == label))
        kept.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    test = np.sort(np.concatenate(kept)) if kept else np.array([], dtype=np.int64)
    if not len(test):
        raise UserError(
            f"{source.name} has one labelled image a class and no validation split beside it; label more images, "
            f"or give "
            "the images to test on with --val-data."
        )
    left = np.setdiff1d(np.flatnonzero(source.labels >= 0), test)
    train = source.subset(left, f"{source.name}, without those held out")
    train.account.guess(
        f"no validation split lies beside {source.name}: {len(test):,} of its labelled images ({share:.0%} of "
        f"each class) "
        "are held out to test on; --val-data names others"
    )
    return train, source.subset(test, f"{source.name}, held out")
