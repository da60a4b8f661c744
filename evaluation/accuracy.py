"""Top-1 and top-5 in percent: the only accuracy of the project."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saccade.base.errors import UserError


class Accuracy(NamedTuple):
    """Percent of the test images whose class is the best, and among the five best."""

    top1: float
    top5: float


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """(M,) int64: how many classes stand before the true one, in (M, C) scores; equal scores stand by class number.

    A label that is no column of `scores` has rank C: it can never be right. Raises UserError for NaN, which would
    otherwise compare as "not before" and count as right.
    """
    if torch.isnan(scores).any():
        raise UserError("the class scores are not numbers (NaN): the backbone or the classifier has diverged.")
    classes = scores.shape[1]
    known = labels < classes
    column = labels.clamp(max=classes - 1)[:, None]
    own = scores.gather(1, column)
    earlier = torch.arange(classes, device=scores.device) < column
    before = (scores > own) | ((scores == own) & earlier)
    return torch.where(known, before.sum(1), classes)


def accuracy(scores: Tensor, labels: Tensor) -> Accuracy:
    """Of (M, C) class scores against (M,) labels.

    Examples:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        Accuracy(top1=50.0, top5=100.0)
    """
    return accuracy_of_ranks(ranks(scores, labels))


def accuracy_of_ranks(rank: Tensor) -> Accuracy:
    """Of (M,) ranks, 0 for the best class."""
    return Accuracy(*(100.0 * (rank < k).sum().item() / len(rank) for k in (1, 5)))


def named(accuracy: Accuracy) -> dict[str, float]:
    """As a result has it."""
    return {"top1": round(accuracy.top1, 3), "top5": round(accuracy.top5, 3)}
