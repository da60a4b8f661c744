"""Which samples, in which order, on which process. Stateless: any batch of any epoch can be asked for directly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.stream import mix64, stream_key


class Order:
    """Our own permutation of (seed, epoch), cut into global batches, dealt out to the processes one image at a time.

    The global batch does not depend on the number of processes, so N processes see what one would; and a run stopped
    after `seen` samples goes on with the next unseen one on any number of processes.

    Examples:
        >>> order = Order(samples=10, batch_size=4, seed=0)
        >>> [batch.tolist() for batch in order.batches(epoch=0)]
        [[9, 1, 4, 5], [2, 3, 7, 8]]
        >>> [batch.tolist() for batch in Order(10, 4, rank=1, world_size=2).batches(epoch=0)]  # its half of each
        [[1, 5], [3, 8]]
        >>> order.batches(epoch=0, seen=4)[0].tolist()  # where a stopped run goes on
        [2, 3, 7, 8]
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
    ) -> None:
        if drop_last and batch_size > samples:
            raise UserError(
                f"the batch size {batch_size} is larger than the data set of {samples} images; "
                f"give --batch-size {samples} or less."
            )
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"the global batch size {batch_size} must be a positive multiple of the {world_size} "
                f"processes; give --batch-size {max(1, batch_size // world_size) * world_size}."
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def permutation(self, epoch: int) -> Tensor:
        """(samples,) int64: the order of `epoch`, the same on every process and machine."""
        if not self.shuffle:
            return torch.arange(self.samples)
        if self._cached[0] != epoch:
            keys = mix64(torch.arange(self.samples) + stream_key(self.seed, epoch, 0x0BDE5) // 4)
            self._cached = (epoch, torch.argsort(keys, stable=True))
        return self._cached[1]

    def steps(self, seen: int = 0) -> int:
        """Batches left in an epoch of which `seen` samples are done."""
        left = max(0, self.samples - seen)
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def batches(self, epoch: int, seen: int = 0) -> list[Tensor]:
        """This process's indices of every remaining batch of the epoch."""
        order = self.permutation(epoch)[seen:]
        shards = []
        for step in range(self.steps(seen)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            shards.append(batch[self.rank :: self.world_size])
        return shards


class ShardedOrder(Order):
    """For sets too large or too far away to be read in any order: groups of shards after one another.

    Every epoch the shards are permuted and taken `group` at a time; the samples of a group are permuted among
    themselves, so at any time the reads go to about `group` shards. All else is Order's: N processes see what one
    would, and a run goes on with the next unseen sample. shard: (N,) integers, the shard of each sample.
    """

    def __init__(self, shard: np.ndarray, group: int, *args, **kwargs) -> None:
        if group < 1:
            raise UserError(f"--shard-group {group} is not positive; give the number of shards to shuffle together.")
        super().__init__(len(shard), *args, **kwargs)
        self._shard, self._group = torch.from_numpy(np.asarray(shard, dtype=np.int64)), group

    def permutation(self, epoch: int) -> Tensor:
        if self.shuffle and self._cached[0] != epoch:
            keys = mix64(torch.arange(int(self._shard.max()) + 1) + stream_key(self.seed, epoch, 0x5A4D5) // 4)
            group = (
                torch.argsort(torch.argsort(keys, stable=True))[self._shard] // self._group
            )  # the group of each sample
            mixed = super().permutation(epoch)
            self._cached = (epoch, mixed[torch.argsort(group[mixed], stable=True)])
        return super().permutation(epoch)
