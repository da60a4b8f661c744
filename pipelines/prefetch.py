"""Renders the next batch while this one trains: on a GPU, on a stream of its own. A CPU has nowhere to hide it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saccade.pipelines.pipeline import Batch


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order; on CUDA one is being made ahead of the one that is used.

    Only kernels are launched ahead, none is waited for: the training stream waits for the batch's own event.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = _side_stream(device)

    def advance() -> tuple[Batch | None, torch.cuda.Event]:
        with torch.cuda.stream(side):
            batch = next(batches, None)
            return batch, side.record_event()

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


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs and pipelines: the allocator keeps memory apart for every stream it has seen."""
    return torch.cuda.Stream(device)


def tensors(batch: object) -> Iterator[Tensor]:
    """Every tensor of a batch, its parameters' and its companion's included."""
    for value in vars(batch).values():
        for part in value.values() if isinstance(value, dict) else [value]:
            if isinstance(part, Tensor):
                yield part
            elif is_dataclass(part):
                yield from tensors(part)
