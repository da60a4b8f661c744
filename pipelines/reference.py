"""The `reference` executor: the meaning of every parameter, one image at a time, by torchvision's functions.

Slow on purpose and correct on purpose. The other executors are judged against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torchvision.transforms.functional as F
from torch import Tensor

from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import View, Views
from saccade.pipelines.workers import Workers

_DECODED_BYTES = 1 << 28  # at most so much is decoded at once by a worker, and one image more


def render_one(pixels: Tensor, view: View, params: ViewParams, recipe: Views) -> Tensor:
    """One view of one image: pixels (C, H, W) uint8, params of one sample -> (C, S, S) float32.

    Computed in float32 from start to end; rounding to uint8 between operations, as PIL does, is not part of the meaning
    (tests/pipelines measure that difference).
    """
    top, left, height, width = params.box[0].tolist()
    interpolation = F.InterpolationMode(recipe.geometry_of(view).crop.interpolation)
    image = F.resized_crop(
        pixels.float() / 255, top, left, height, width, [view.size, view.size], interpolation, antialias=True
    ).clamp(0, 1)
    if params.flip:
        image = F.hflip(image)
    for key, operation in view.keyed.items():
        if params.drawn[key]["chosen"]:
            judged = (
                operation.reference(image, params.values(key, 0)) if len(image) == 3 else None
            )  # torchvision's are RGB
            image = operation.apply(image[None], params.drawn[key])[0] if judged is None else judged
    return F.normalize(image, list(recipe.mean), list(recipe.std))


class ReferencePipeline(Pipeline):
    """Any source; worker processes each make whole batches."""

    def __init__(self, *args, workers: int = 0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        shard = -(-self.order.batch_size // self.order.world_size)
        room = sum(shard * self.source.channels * view.size**2 * 4 for view in self.recipe)
        self._workers = Workers(_RenderedBatches(self.source, self.recipe, self.order.seed), workers, room)

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        items = ((epoch, shard.numpy()) for shard in shards)  # a tensor would travel by /dev/shm
        for views, (params, index, used, bad) in self._workers.map(items):
            self.source.report_bad(bad)
            views = {name: self._placed(view) for name, view in views.items()}
            params = {name: ViewParams(*fields).to(self.device, non_blocking=True) for name, fields in params.items()}
            label = self._labels(used)
            yield Batch(views, params, index, None if label is None else label.to(self.device, non_blocking=True))

    def _placed(self, view: Tensor) -> Tensor:
        """A copy on the device: what it was made in is used again."""
        placed = torch.empty(view.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        return placed.copy_(view.pin_memory() if self.device.type == "cuda" else view, non_blocking=True)

    def close(self) -> None:
        self._workers.close()


class _RenderedBatches:
    """(epoch, indices) -> a whole rendered batch, as plain tensors that travel between processes."""

    def __init__(self, source: Source, recipe: Views, seed: int) -> None:
        self.source, self.recipe, self.seed = source, recipe, seed

    def __call__(self, item: tuple[int, np.ndarray]):
        epoch, index = item[0], torch.from_numpy(item[1])
        before = set(self.source.known_bad)
        pixels, used, pieces = [], [], []
        for k, number in enumerate(index.tolist(), 1):
            image, shown = self.source.read_or_replace(number)
            pixels.append(torch.tensor(image).permute(2, 0, 1))
            used.append(shown)
            if k == len(index) or sum(map(torch.numel, pixels)) > _DECODED_BYTES:
                pieces.append(self._rendered(epoch, index[k - len(pixels) : k], pixels))
                pixels = []
        views = {view.name: torch.cat([rendered[view.name] for rendered, _ in pieces]) for view in self.recipe}
        params = {name: ViewParams.cat(drawn[name] for _, drawn in pieces) for name in pieces[0][1]}
        bad = {name: why for name, why in self.source.known_bad.items() if name not in before}
        fields = {name: tuple(vars(p).values()) for name, p in params.items()}
        return views, (fields, index, torch.tensor(used), bad)

    def _rendered(
        self, epoch: int, index: Tensor, pixels: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, ViewParams]]:
        params = draw(self.recipe, self.seed, epoch, index, torch.tensor([p.shape[1:] for p in pixels]))
        views = {
            view.name: torch.stack(
                [render_one(p, view, params[view.name][i : i + 1], self.recipe) for i, p in enumerate(pixels)]
            )
            for view in self.recipe
        }
        return views, params
