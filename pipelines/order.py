"""Which samples, in which order, on which process. Stateless: any batch of any epoch can be asked for directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.permute import permute
from saccade.pipelines.stream import mix64, stream_key

ORDER_VERSION = 2  # 1 sorted random keys, up to 2026-11-25; a run goes on only under the version it began with


class Order:
    """Our own permutation of (seed, epoch), cut into global batches, dealt out to the processes one image at a time.

    The global batch does not depend on the number of processes, so N processes see what one would; and a run stopped
    after `seen` samples goes on with the next unseen one on any number of processes. Nothing is held for each sample:
    the sample at a place is computed when it is asked for. even: False where batches need not be multiples of the
    number of processes; `share` says how many images of one are whose.

    Examples:
        >>> order = Order(samples=10, batch_size=4, seed=0)
        >>> [batch.tolist() for batch in order.batches(epoch=0)]
        [[7, 8, 6, 0], [2, 4, 1, 5]]
        >>> [batch.tolist() for batch in Order(10, 4, rank=1, world_size=2).batches(epoch=0)]  # its half of each
        [[8, 0], [4, 5]]
        >>> order.batches(epoch=0, seen=4)[0].tolist()  # where a stopped run goes on
        [2, 4, 1, 5]
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        even: bool = True,
    ) -> None:
        if drop_last and batch_size > samples:
            raise UserError(
                f"the batch size {batch_size} is larger than the data set of {samples} images; "
                + (f"give --batch-size {samples} or less." if samples > 1 else "give more images.")
            )
        if batch_size < 1 or (even and batch_size % world_size):
            raise UserError(
                f"the global batch size {batch_size} must be a positive multiple of the {world_size} "
                f"processes; give --batch-size {max(1, batch_size // world_size) * world_size}."
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last, self.even = shuffle, drop_last, even

    def at(self, epoch: int, place: Tensor) -> Tensor:
        """(n,) int64: the samples at these places, (n,) int64, of `epoch`; the same on every process and machine."""
        if not self.shuffle:
            return place.clone()
        key = stream_key(self.seed, epoch, 0x0BDE5)
        return torch.from_numpy(_permuted(place.numpy(), self.samples, key).astype(np.int64))

    def permutation(self, epoch: int) -> Tensor:
        """(samples,) int64: the whole order of `epoch`, for sets small enough to list."""
        return self.at(epoch, torch.arange(self.samples))

    def steps(self, seen: int = 0) -> int:
        """Batches left in an epoch of which `seen` samples are done."""
        left = max(0, self.samples - seen)
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def share(self, step: int) -> tuple[int, int]:
        """(of this process, of all): images of batch `step` of an epoch. Where even is False and none are this
        process's, its batch holds the first one of all, which is not to be counted.

        Examples:
            >>> [Order(9, 4, rank=1, world_size=2, drop_last=False, even=False).share(step) for step in range(3)]
            [(2, 4), (2, 4), (0, 1)]
        """
        images = min(self.batch_size, self.samples - step * self.batch_size)
        return len(range(self.rank, images, self.world_size)), images

    def batches(self, epoch: int, seen: int = 0) -> Batches:
        """This process's indices of every remaining batch of the epoch, each made when it is asked for."""
        return Batches(self, epoch, seen)


class Batches(Sequence[Tensor]):
    """Tensors of their own, never views: torch sends a view to a worker by its whole storage."""

    def __init__(self, order: Order, epoch: int, seen: int) -> None:
        self._order, self._epoch, self._seen = order, epoch, seen

    def __len__(self) -> int:
        return self._order.steps(self._seen)

    @overload
    def __getitem__(self, step: int) -> Tensor: ...

    @overload
    def __getitem__(self, step: slice) -> list[Tensor]: ...

    def __getitem__(self, step: int | slice) -> Tensor | list[Tensor]:
        steps = range(len(self))[step]
        return self._batch(steps) if isinstance(steps, int) else [self._batch(i) for i in steps]

    def _batch(self, step: int) -> Tensor:
        order = self._order
        first = self._seen + step * order.batch_size
        end = min(first + order.batch_size, order.samples)
        places = torch.arange(first + order.rank, max(first + order.rank, end), order.world_size)
        if not order.even and not len(places):
            places = torch.arange(first, first + 1)  # no executor makes a batch of no images
        return order.at(self._epoch, places)


class ShardedOrder(Order):
    """For sets too large or too far away to be read in any order: groups of shards after one another.

    Every epoch the shards are permuted and taken `group` at a time; the samples of a group are permuted among
    themselves, so at any time the reads go to about `group` shards. All else is Order's: N processes see what one
    would, and a run goes on with the next unseen sample. shard: (N,) integers, the shard of each sample; held is a
    number for each shard, and for each sample only where a shard's samples do not lie together.
    """

    def __init__(self, shard: np.ndarray, group: int, *args, **kwargs) -> None:
        if group < 1:
            raise UserError(f"--shard-group {group} is not positive; give the number of shards to shuffle together.")
        super().__init__(len(shard), *args, **kwargs)
        self._rows = None
        starts = _starts(shard)
        if len(np.unique(shard[starts])) < len(starts):
            self._rows = np.argsort(shard, kind="stable")
            starts = _starts(shard[self._rows])
        self._starts, self._group = starts, group
        self._counts = np.diff(starts, append=len(shard))
        self._turns: tuple[int, np.ndarray, np.ndarray] = (-1, starts, starts)

    def at(self, epoch: int, place: Tensor) -> Tensor:
        if not self.shuffle:
            return super().at(epoch, place)
        turn, ends = self._turn(epoch)
        edges = np.concatenate([[0], ends[self._group - 1 : -1 : self._group], ends[-1:]])  # of the groups
        group = np.searchsorted(edges, place.numpy(), side="right") - 1
        keys = mix64(torch.from_numpy(group) + stream_key(self.seed, epoch, 0x0BDE5) // 4).numpy()
        inside = _permuted(place.numpy() - edges[group], edges[group + 1] - edges[group], keys)
        place_in_turn = edges[group] + inside.astype(np.int64)
        k = np.searchsorted(ends, place_in_turn, side="right")
        rows = self._starts[turn[k]] + place_in_turn - (ends[k] - self._counts[turn[k]])
        return torch.from_numpy(rows if self._rows is None else self._rows[rows])

    def _turn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of `epoch`, and where each ends in it."""
        if self._turns[0] != epoch:
            shards = np.arange(len(self._starts))
            turn = _permuted(shards, len(shards), stream_key(self.seed, epoch, 0x5A4D5)).astype(np.int64)
            self._turns = (epoch, turn, np.cumsum(self._counts[turn]))
        return self._turns[1:]


def _starts(shard: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    return np.concatenate([[0], np.flatnonzero(shard[1:] != shard[:-1]) + 1])


def _permuted(place: np.ndarray, count: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """(n,) uint64: `permute` of int64 arrays, or of one count and key for all."""
    full = [
        np.full(len(place), value, np.uint64) if isinstance(value, int) else np.ascontiguousarray(value).view(np.uint64)
        for value in (count, key)
    ]
    return permute(np.ascontiguousarray(place).view(np.uint64), *full)
