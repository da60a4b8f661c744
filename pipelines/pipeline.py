"""The contract of every executor: the batches of an epoch, counted, and a position that can be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.order import ORDER_VERSION, Order
from saccade.pipelines.prefetch import prefetched
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.fingerprint import difference, fingerprint
from saccade.pipelines.views import Views


@dataclass(frozen=True)
class Batch:
    """One step's data. views: name -> (n, 3, S, S) on the device, channels-last; params: name -> ViewParams of n."""

    views: dict[str, Tensor]
    params: dict[str, ViewParams]
    index: Tensor  # (n,) int64 sample numbers
    label: Tensor | None  # (n,) int64; None without labels
    companion: Batch | None = None  # n labelled images of another source: pipelines.companion

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(view.shape[1:])}" for name, view in self.views.items())
        known = "no labels" if self.label is None else "labelled"
        return f"Batch({len(self.index)} of {shapes}; {known}; on {next(iter(self.views.values())).device})"

    def __getitem__(self, rows: slice) -> Batch:
        """These rows of everything."""
        return Batch(
            {name: view[rows] for name, view in self.views.items()},
            {name: params[rows] for name, params in self.params.items()},
            self.index[rows],
            None if self.label is None else self.label[rows],
            self.companion and self.companion[rows],
        )


def pieces_of(sizes: np.ndarray, most: int) -> list[slice]:
    """Consecutive pieces of images, (N, 2) heights and widths, whose pixels are about `most` bytes: what is decoded at
    once is bounded, however large the images of a batch are. A larger image is a piece alone."""
    cost = (3 * sizes.prod(axis=1)).cumsum() // most
    edges = [0, *(np.flatnonzero(np.diff(cost)) + 1).tolist(), len(sizes)]
    return [slice(a, b) for a, b in pairwise(edges)]


class Pipeline(ABC):
    """Iterating gives the rest of the current epoch; the next iteration is the next epoch.

    `len()` is the number of steps of a whole epoch and is asserted at the end of each. An executor implements
    `_batches`, where it holds threads or processes `close`, and where it cannot read every source `refusal`. renderer:
    the backend of pipelines.render; workers: how many threads or processes may decode.
    """

    choice = ""  # which executor this is and why it was chosen, for print

    def __init__(
        self,
        source: Source,
        recipe: Views,
        order: Order,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        renderer: str = "auto",
        workers: int = 1,
    ) -> None:
        self.source, self.recipe, self.order = source, recipe, order
        self.device, self.dtype, self.renderer, self.workers = torch.device(device), dtype, renderer, max(1, workers)
        self.epoch, self.seen = 0, 0  # seen: samples of this epoch already handed out, over all processes

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.source.name}: {len(self)} steps of {self.order.batch_size}, views "
            f"{', '.join(self.recipe.names)}, on {self.device}>"
        )

    @classmethod
    def refusal(cls, source: Source, device: torch.device) -> str | None:
        """Why it cannot work on this source there, and the way out; None if it can."""
        return None

    @abstractmethod
    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        """Render the given shards of `epoch`, in this order; on a GPU by what is queued on the current stream."""

    def close(self) -> None:  # noqa: B027 - an executor without threads has nothing to stop
        """Stop threads and processes. The pipeline may be iterated again afterwards."""

    def __len__(self) -> int:
        return self.order.steps()

    def __iter__(self) -> Iterator[Batch]:
        epoch, steps, made = self.epoch, self.order.steps(self.seen), 0
        for batch in prefetched(self._batches(epoch, self.order.batches(epoch, self.seen)), self.device):
            made += 1
            self.seen += min(self.order.batch_size, self.order.samples - self.seen)
            if (
                made == steps
            ):  # the position moves on before the last batch is used: a checkpoint there is at the epoch's end
                self.epoch, self.seen = epoch + 1, 0
            yield batch
        if made != steps:
            raise RuntimeError(
                f"{type(self).__name__} made {made} of {steps} batches of epoch {epoch}; please report it."
            )

    def at(self, epoch: int) -> Self:
        """Itself, at the start of an epoch."""
        self.epoch, self.seen = epoch, 0
        return self

    def state_dict(self) -> dict[str, Any]:
        position = {"epoch": self.epoch, "seen": self.seen, "order": ORDER_VERSION}
        return {**position, "samples": self.order.samples, "images": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, shown = state.get("order", 1), state["epoch"] or state["seen"]
        if shown and version != ORDER_VERSION:
            raise UserError(
                f"the checkpoint was made under version {version} of the order of samples, this release has "
                f"version {ORDER_VERSION}; continue it with the release it was started with, or start a new run."
            )
        if state["samples"] != self.order.samples:
            raise UserError(
                f"the checkpoint was made on {state['samples']} images, {self.source.name} has "
                f"{self.order.samples}; give the same data to resume."
            )
        before = state.get("images")
        if isinstance(before, Mapping) and (other := difference(before, self.fingerprint, self.source)):
            raise UserError(
                f"the checkpoint was made on other images or labels, or in another order, than those of "
                f"{self.source.name} ({other}); give the same data to resume."
            )
        self.epoch, self.seen = state["epoch"], state["seen"]

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of the images, for a record."""
        return fingerprint(self.source)

    def _labels(self, numbers: Tensor) -> Tensor | None:
        return None if self.source.labels is None else torch.from_numpy(self.source.labels[numbers.numpy()])
