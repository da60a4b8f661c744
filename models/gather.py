"""Collectives across processes: the only gather of the project. Each is the identity on one process.

The global batch's order everywhere: rank r of W holds its samples r, r + W, r + 2W, ..., and so do the rows of a
gathered tensor: what is made of groups i mod G of the batch lies on one rank where W divides G, and a piece of every
rank's batch is a piece of the global one. All ranks must hold equal shapes (the order of samples is drop-last, so they
do).
"""

import torch
import torch.distributed as dist
from torch import Tensor


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 on one process."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """Number of processes, 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if _distributed() else 1


def own_rows(x: Tensor) -> Tensor:
    """(world * n, ...) of the global batch -> (n, ...), this rank's, a view."""
    return x[rank() :: world_size()]


def own_places(n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n,): where this rank's n samples lie in the global batch."""
    return torch.arange(n, device=device) * world_size() + rank()


def all_gather_no_grad(x: Tensor) -> Tensor:
    """(n, ...) on every rank -> (world * n, ...) in the global batch's order, without gradient."""
    x = x.detach()
    if not _distributed():
        return x
    gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(gathered, x.contiguous())
    return gathered.unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Elementwise sum of x over the ranks, without gradient; x is left as it was."""
    x = x.detach()
    if not _distributed():
        return x
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return all_gather_no_grad(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return own_rows(all_reduce_sum(grad))


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return all_reduce_sum(grad)


def all_gather(x: Tensor) -> Tensor:
    """(n, ...) on every rank -> (world * n, ...) in the global batch's order, with gradient.

    Backward: all-reduce (SUM) of the gradient, of which each rank keeps its slice. The gradient is then that of the sum
    of the ranks' losses, so after DDP's average it is the gradient of their mean (S-TEC / lightning-bolts convention).
    """
    return _AllGather.apply(x) if _distributed() else x


def all_reduce_sum_with_grad(x: Tensor) -> Tensor:
    """Elementwise sum of x over the ranks; backward is the same sum of the gradients."""
    return _AllReduceSum.apply(x) if _distributed() else x
