"""A training step of all processes: each has its share of a batch, and the gradient is that of one process with all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from saccade.models.gather import all_reduce_sum
from saccade.pipelines.build import build_pipeline, of_all_processes
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.runs.ranks import Ranks

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Settings


@contextmanager
def shared_pipeline(
    source: Source, views: Views, batch_size: int, s: Settings, seed: int, drop_last: bool = False
) -> Iterator[Pipeline]:
    """`views` of the labelled images in batches that the processes share out among themselves, of any size; inside, all
    of them must go on."""
    r = s.ranks
    order = Order(len(source), batch_size, seed, r.rank, r.world, drop_last=drop_last, even=False)
    agree = partial(r.common, "choosing the executor", choose=of_all_processes)
    made = build_pipeline(source, views, order, s.executor, s.device, workers=s.workers, agree=agree)
    with made as pipeline, r.together():
        yield pipeline


def together(module: nn.Module, ranks: Ranks) -> nn.Module:
    """`module`, whose gradients are from now on the mean of all processes'; on one process itself."""
    if ranks.world == 1:
        return module
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is unknown to torch 2.11
        return DistributedDataParallel(module, broadcast_buffers=False)


def cross_entropy_of(logits: Tensor, labels: Tensor, images: int, ranks: Ranks) -> Tensor:
    """Of this process's (n, C) logits and (n,) labels of a batch of `images` on all processes, n perhaps 0: the mean of
    all processes' is the batch's cross-entropy."""
    return F.cross_entropy(logits, labels, reduction="sum") * (ranks.world / images)


def mean_of(value: Tensor, ranks: Ranks) -> float:
    """The mean of all processes' value."""
    return (all_reduce_sum(value) / ranks.world if ranks.world > 1 else value).item()
