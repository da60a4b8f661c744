"""The FIFO of past keys that ReSSL, MoCo v2 and CACR compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.models.gather import all_gather_no_grad


class KeyQueue(nn.Module):
    """The last `size` keys of all ranks, unit vectors of `dim`; unit normal noise until size / batch steps filled it.

    Stored as (size, dim) rows, so that a step writes one contiguous block and nothing else moves; `columns` is the
    papers' (D, K) view of the same memory. Logits keep the queue for backward, so enqueue after backward: then no copy
    is needed.

    Examples:
        >>> queue = KeyQueue(dim=128, size=4096)
        >>> queue.enqueue(F.normalize(torch.randn(256, 128), dim=1))
        >>> queue.columns.shape, int(queue.pointer)
        (torch.Size([128, 4096]), 256)
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise UserError(f"a queue of {size} keys of dimension {dim} cannot be; both must be at least 1")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @property
    def columns(self) -> Tensor:
        """(D, K), one key per column, a view without gradient."""
        return self.keys.t()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys by all ranks' (n, D) unit `keys`, in the batch's order.

        Raises UserError where the queue's size is not a multiple of the global batch.
        """
        block = all_gather_no_grad(keys).to(self.keys.dtype)
        size = len(self.keys)
        if size % len(block):
            raise UserError(f"a queue of {size} keys does not hold whole global batches of {len(block)}; change either")
        places = (self.pointer + torch.arange(len(block), device=self.keys.device)) % size
        self.keys.index_copy_(0, places, block)
        self.pointer.add_(len(block)).remainder_(size)
