"""Sampling weights, for long tails: how often an epoch shows each image. As much an order of (seed, epoch) as any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.table_source import column_of
from saccade.pipelines.stream import stream_key

BALANCED, SQRT = "balanced", "sqrt"
_ONE = 1 << 30  # the largest weight, as a whole number: the same picks on every machine


class WeightedOrder(Order):
    """An epoch of as many samples as there are, each as often as its weight's share of them, rounded down or up.

    weights: (N,) 0 or more; group: (N,) integers whose samples together are shown within one of their share, too. Which
    samples are rounded up changes with the epoch, so that over many all have their exact share (systematic sampling).
    All else is Order's: N processes see what one would, and a run goes on with the next unseen sample.
    """

    def __init__(self, weights: np.ndarray, group: np.ndarray | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(weights), *args, **kwargs)
        self._ends = np.rint(weights * (_ONE / weights.max())).astype(np.int64)
        self._group = None if group is None else torch.from_numpy(np.asarray(group, dtype=np.int64))
        self._picked: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def at(self, epoch: int, place: Tensor) -> Tensor:
        """(n,) int64: which samples stand at these places of `epoch`."""
        if self._picked[0] != epoch:
            self._picked = (epoch, self._picks(epoch))
        return self._picked[1][super().at(epoch, place)]

    def _picks(self, epoch: int) -> Tensor:
        """(samples,) int64: the samples of the epoch, not yet shuffled: those at N equal steps along all weights."""
        other = Order(self.samples, 1, self.seed ^ 0x5EED)  # not the order that the picks are shown in
        row = other.permutation(epoch)
        if self._group is not None:
            row = row[torch.argsort(self._group[row], stable=True)]
        ends = np.cumsum(self._ends[row.numpy()])
        total, count = int(ends[-1]), self.samples
        start = stream_key(self.seed, epoch, 0x5A3B1) % total
        step = np.arange(count, dtype=np.int64)
        at = step * (total // count) + (step * (total % count) + start % total) // count
        return row[torch.from_numpy(np.searchsorted(ends, at, side="right"))]


@dataclass(frozen=True)
class Sampling:
    """What a WeightedOrder takes, and a line on it."""

    weights: np.ndarray
    group: np.ndarray | None
    told: str


def find_sampling(sampling: str, source: Source, table: str | None) -> Sampling:
    """sampling: "balanced": each class as often as any other; "sqrt": by the square
    root of its images (Kang et al. 2020, arXiv 1910.09217: class-balanced, square-root); else a column of `table`."""
    if sampling not in (BALANCED, SQRT):
        return _by_column(sampling, source, table)
    if source.labels is None:
        raise UserError(f"--sampling {sampling}: {source.name} has no labels; give --labels CSV, or leave it out.")
    known = source.labels >= 0
    counts = np.bincount(source.labels[known])
    share = np.where(counts > 0, 1.0 if sampling == BALANCED else np.sqrt(counts), 0.0)
    times = share / share.sum() * known.sum() / np.maximum(counts, 1)  # how often an epoch shows an image of the class
    weights = np.ones(len(source))
    weights[known] = times[source.labels[known]]
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    told = (
        f"{sampling}, {int((counts > 0).sum())} classes; an epoch shows an image of the largest ({counts[most]:,}) "
        f"{times[most]:.3g} times, of the smallest ({counts[least]:,}) {times[least]:.3g} times"
    )
    if not known.all():
        told += f"; the {int((~known).sum()):,} images without a label once, as before"
    return Sampling(weights, source.labels, told)


def _by_column(column: str, source: Source, table: str | None) -> Sampling:
    if table is None:
        raise UserError(
            f"--sampling {column}: give {BALANCED}, {SQRT}, or a column of weights in the CSV of --labels (or --data)."
        )
    texts, which = column_of(source, table, column)
    used, first = np.unique(which[which >= 0], return_index=True)
    number = np.full(len(texts) + 1, np.nan)  # the last: of an image without a row
    try:
        for k in used[np.argsort(first)]:  # as the images come, for the sentence
            number[k] = float(texts[int(k)] or "nan")
        weights = number[which]
    except ValueError as error:
        raise UserError(f"--sampling {column}: {table} has a weight that is no number ({error}).") from error
    if (missing := np.isnan(weights)).any():
        first = source.key_of(int(missing.argmax()))
        raise UserError(
            f"--sampling {column}: {int(missing.sum()):,} of {len(source):,} images have no weight in {table}, such as "
            f"{first}; give each one (0 leaves it out)."
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.max():
        raise UserError(f"--sampling {column}: the weights of {table} must be 0 or more, finite, and not all 0.")
    times = weights / weights.mean()
    told = f"column {column} of {table}; an epoch shows an image {times.min():.3g} to {times.max():.3g} times"
    if never := int((weights == 0).sum()):
        told += f", {never:,} of weight 0 never"
    return Sampling(weights, None, told)
