"""How sure an accuracy is: 95 % intervals from counts of right answers, in closed form."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from torch import Tensor

Z = 1.959963984540054  # of 95 % of the normal distribution


class Interval(NamedTuple):
    """A value and its 95 % interval, in percent or percentage points."""

    value: float
    low: float
    high: float


def wilson(right: int, images: int) -> Interval:
    """Percent right, with Wilson's score interval (1927). ValueError without images.

    Examples:
        >>> [round(x, 1) for x in wilson(90, 100)]
        [90.0, 82.6, 94.5]
    """
    if not 0 <= right <= images or images == 0:
        raise ValueError(f"{right} right of {images} images")
    share, extra = right / images, Z * Z / images
    centre = (share + extra / 2) / (1 + extra)
    half = Z * sqrt(share * (1 - share) / images + extra / (4 * images)) / (1 + extra)
    return Interval(100 * share, 100 * max(0.0, centre - half), 100 * min(1.0, centre + half))


def paired_difference(first: Tensor, second: Tensor) -> Interval:
    """Percentage points by which `first` is right more often than `second`, both (N,) bool over the same images.

    Newcombe's score interval for paired proportions (1998, method 10 without continuity correction), made of Wilson's:
    unlike a bootstrap it needs no draws, and never shrinks to a point where all answers differ alike.
    """
    n = len(first)
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second = int((~first & second).sum())
    neither = n - both - only_first - only_second
    a, b = wilson(both + only_first, n), wilson(both + only_second, n)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    phi = (both * neither - only_first * only_second) / sqrt(product) if product else 0.0
    below = _joined(a.value - a.low, b.high - b.value, phi)
    above = _joined(a.high - a.value, b.value - b.low, phi)
    difference = 100 * (only_first - only_second) / n
    return Interval(difference, difference - below, difference + above)


def _joined(a: float, b: float, phi: float) -> float:
    return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))
