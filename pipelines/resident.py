"""The `resident` executor: the whole set lives on the device as uint8, views are cut by batched kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.render import render
from saccade.pipelines.sources import Source

_DRAWN_AT_ONCE = {"cpu": 4096, "cuda": 65536}  # samples; a CPU must not wait long for its first batch


class UnequalSizes(UserError):
    """The images are of different sizes, so they cannot be held as one array."""


class ResidentPipeline(Pipeline):
    """For sets of equally sized images that fit into the device's memory: CIFAR, STL-10, Tiny-ImageNet, .npz."""

    def __init__(self, source: Source, *args, **kwargs) -> None:
        super().__init__(source, *args, **kwargs)
        images, self._used = load_images(source)
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


def load_images(source: Source) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 of a whole source, and (N,) the sample each one shows: unreadable ones are replaced, counted.

    Unequal sizes are an error. Beside the result no more than an image is held, or the array that the source is.
    """
    whole = source.array()
    if whole is not None:
        return torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous(), torch.arange(len(source))
    first, _ = source.read_or_replace(0)
    height, width, channels = first.shape
    images, numbers = torch.empty(len(source), channels, height, width, dtype=torch.uint8), []
    for i in range(len(source)):
        pixels, used = source.read_or_replace(i)
        if pixels.shape != first.shape:
            raise UnequalSizes(
                f"--pipeline resident needs images of one size, but {source.name_of(used)} is "
                f"{pixels.shape[1]}x{pixels.shape[0]} and {source.name_of(0)} is {width}x{height}; use --pipeline auto."
            )
        images.numpy()[i] = pixels.transpose(2, 0, 1)
        numbers.append(used)
    return images, torch.tensor(numbers)
