"""A part of the labelled images kept back for evaluation, where nobody made a split: the same in every run, by
class."""

from __future__ import annotations

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.source import Source

SHARE = 0.2
FEW = 2_000  # labelled images that are too few to lose a fifth of
LEAST = 20  # labelled images of which an accuracy says something


def hold_out(source: Source, share: float = SHARE, seed: int = 0, alone: bool = False) -> tuple[Source, Source, str]:
    """(the others, the kept back, a sentence on it) of the labelled images: `share` of each class, at least one.
    UserError without labels.

    A class of a single image stays with the others. alone: where labels are few, all of them twice, the same source:
    each is then tested against all others (kNN, leave one out).
    """
    if source.labels is None:
        raise UserError(
            f"{source.name} has neither labels nor a validation split beside it; give --labels CSV, or the "
            f"images to test on with --val-data."
        )
    labelled = once(source.labelled())
    assert labelled.labels is not None
    if alone and len(labelled) <= FEW:
        told = (
            f"no validation split lies beside {source.name} and its labels are few ({len(labelled):,}): each image is "
            "tested against all others (leave one out); --val-data names images to test on"
        )
        return labelled, labelled, told
    rng, kept = np.random.default_rng(seed), []
    for rows in by_class(labelled.labels):
        rows = rng.permutation(rows)
        kept.append(rows[: max(1, round(share * len(rows)))] if len(rows) > 1 else rows[:0])
    test = np.sort(np.concatenate(kept))
    if not len(test):
        raise UserError(
            f"{source.name} has one labelled image a class and no validation split beside it; label more images, "
            f"or give the images to test on with --val-data."
        )
    train = labelled.subset(np.setdiff1d(np.arange(len(labelled)), test), f"{source.name}, without those held out")
    told = (
        f"no validation split lies beside {source.name}: {len(test):,} of its labelled images ({share:.0%} of "
        "each class) are held out to test on; --val-data names others"
    )
    return train, labelled.subset(test, f"{source.name}, held out"), told


def by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class that has some, in their order; classes by their numbers, -1 first. One sort, however
    many classes there are."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def may_hold_out(source: Source) -> bool:
    """Whether enough images of two classes or more have labels for an accuracy to say something."""
    if source.labels is None:
        return False
    counts = np.bincount(np.asarray(once(source.labelled()).labels))
    return int((counts > 0).sum()) > 1 and int(counts.sum()) >= LEAST and int(counts.max()) > 1


def once(source: Source) -> Source:
    """Each image once, where a mixture holds some several times: a copy is no neighbour and no test."""
    part, row = (source.index.columns.get(name) for name in ("part", "row"))
    if part is None or row is None:
        return source
    place = part.astype(np.int64) * (int(row.max()) + 1) + row
    first = np.sort(np.unique(place, return_index=True)[1])
    return source if len(first) == len(source) else source.subset(first)
