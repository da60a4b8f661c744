"""Makes the next batch while this one trains: on a GPU, on a stream of its own. A CPU has nowhere to hide it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saccade.pipelines.pipeline import Batch

_MOST_HELD = 8  # pieces of memory a host that runs ahead may leave to its GPU before it waits


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order; on CUDA one is being made ahead of the one that is used.

    Copies and kernels are queued ahead, none is waited for: the training stream waits for the batch's own event.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = _side_stream(device)

    def advance() -> tuple[Batch | None, torch.Event | torch.cuda.Event]:
        with torch.cuda.stream(side):
            batch = next(batches, None)
            return batch, side.record_event()

    try:
        batch, made = advance()
        while batch is not None:
            main = torch.cuda.current_stream(device)
            main.wait_event(made)
            for tensor in tensors(batch):
                if tensor.is_cuda:
                    tensor.record_stream(main)  # its memory is free again only once the training stream is done with it
            following = advance()
            yield batch
            batch, made = following
    finally:
        if isinstance(batches, Generator):  # left early: its threads stop now, not when the memory is collected
            batches.close()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs and pipelines: the allocator keeps memory apart for every stream it has seen."""
    return torch.cuda.Stream(device)


class UntilRead:
    """Holds memory that is not torch's until the work queued so far, which reads it, is done.

    Its owner (DALI) may write it again as soon as it is let go, while the kernels that read it are still waiting their
    turn behind a training step. On a CPU nothing is queued and nothing is held.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: deque[tuple[object, torch.Event | torch.cuda.Event]] = deque()

    def hold(self, *memory: object) -> None:
        """Keep `memory` until what the current stream has to do now is done; let go what was read meanwhile."""
        if self._device.type != "cuda":
            return
        self._held.append((memory, torch.cuda.current_stream(self._device).record_event()))
        while self._held and (len(self._held) > _MOST_HELD or self._held[0][1].query()):
            self._let_go()

    def wait(self) -> None:
        """Let go of everything, once it has been read."""
        while self._held:
            self._let_go()

    def _let_go(self) -> None:
        self._held[0][1].synchronize()
        self._held.popleft()


def tensors(batch: object) -> Iterator[Tensor]:
    """Every tensor of a batch, its parameters' and its companion's included."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict) or is_dataclass(batch):
        for value in (batch if isinstance(batch, dict) else vars(batch)).values():
            yield from tensors(value)
