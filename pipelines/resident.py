"""The `resident` executor: the whole set lives on the device as uint8, views are cut by batched kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.render import render
from saccade.pipelines.sources import Source
from saccade.pipelines.whole import load_images

_DRAWN_AT_ONCE = {"cpu": 4096, "cuda": 65536}  # samples; a CPU must not wait long for its first batch


class ResidentPipeline(Pipeline):
    """For sets of equally sized images that fit into the device's memory: CIFAR, STL-10, Tiny-ImageNet, .npz."""

    def __init__(self, source: Source, *args, workers: int = 0, **kwargs) -> None:
        super().__init__(source, *args, workers=workers, **kwargs)
        images, self._used = load_images(source, workers, shown=self.order.rank == 0)
        self._images = images.to(self.device)
        self._size = torch.tensor(images.shape[2:], device=self.device)

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        for index, on_device, params in self._drawn(epoch, shards):
            views = render(self._images, self.recipe, params, self.dtype, on_device, self.renderer)
            label = self._labels(self._used[index])
            yield Batch(views, params, index, None if label is None else label.to(self.device, non_blocking=True))

    def _drawn(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, dict[str, ViewParams]]]:
        """Each shard, the same on the device, and its parameters: drawn for many shards at once, which changes none of
        them and costs a quarter on a CPU, and on a GPU saves most launches of small operations, and waits for some."""
        together = max(1, _DRAWN_AT_ONCE[self.device.type] // max(1, len(shards[0]))) if shards else 1
        for first in range(0, len(shards), together):
            block = shards[first : first + together]
            index = torch.cat(list(block)).to(self.device, non_blocking=True)
            drawn = draw(self.recipe, self.order.seed, epoch, index, self._size.expand(len(index), 2))
            start = 0
            for shard in block:
                rows = slice(start, start := start + len(shard))
                yield shard, index[rows], {name: params[rows] for name, params in drawn.items()}
