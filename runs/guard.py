"""A step that is not finite changes nothing, and is known for one, on the device: no host waits for either."""

# torch._foreach_* is what torch's own optimizers are written in, though not exported:
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import torch
from torch import Tensor, nn

ABSURD = 1e5  # times the first loss, or times 1 where that is smaller: no training comes back from there


class Guard:
    """Around one optimizer step: `keep` before its forward pass, `put_back` at its end.

    What an optimizer skips by `found_inf` leaves its weights alone; the forward pass has moved batch statistics and
    queues by then, so all buffers are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._kept: list[Tensor] = []
        self._limit: Tensor | None = None

    @torch.no_grad()
    def keep(self) -> None:
        self._kept = []
        self._kept = [_flat(same) for same in self._buffers.values()]

    @torch.no_grad()
    def put_back(self, skipped: Tensor) -> None:
        """Every buffer as it was kept, where `skipped`, a boolean on the device."""
        for same, kept in zip(self._buffers.values(), self._kept, strict=True):
            chosen = torch.where(skipped, kept, _flat(same)).split([b.numel() for b in same])
            torch._foreach_copy_(same, [part.view(b.shape) for part, b in zip(chosen, same, strict=True)])

    @torch.no_grad()
    def undo(self) -> None:
        """Every buffer as it was kept, after a forward pass that failed: without memory of its own."""
        for same, kept in zip(self._buffers.values(), self._kept, strict=False):
            for buffer, part in zip(same, kept.split([b.numel() for b in same]), strict=True):
                buffer.copy_(part.view(buffer.shape))

    @torch.no_grad()
    def absurd(self, loss: Tensor) -> Tensor:
        """Whether a loss is none to go on from: not a number, infinite, or ABSURD beside the first one of this run."""
        size = loss.detach().float().abs()
        if self._limit is None:
            self._limit = ABSURD * size.nan_to_num(1, 1, 1).clamp(min=1)
        return ~(size < self._limit)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
