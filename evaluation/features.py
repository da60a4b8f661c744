"""Images in, frozen features out: what every evaluation starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.progress import progress_bar
from saccade.evaluation.feature_file import FeatureFile
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.stream import mix64, uniform
from saccade.pipelines.views import Views, evaluation_views

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Features:
    """features (N, D) float32, or float16 where they are kept in a file, and labels (N,) int64, -1 for none; both on
    the CPU, in the order of the data."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)


def spread_rows(total: int, samples: int) -> np.ndarray:
    """(samples,) int64 of `total` rows, one at a hashed place in each of as many equal stretches.

    Spread evenly, so a folder sorted by class gives all classes; not in a fixed step, which a set whose labels repeat
    (0 1 2 .. 9 0 1 ..) would turn into a single class.
    """
    stretch = torch.arange(samples)
    start, end = stretch * total // samples, (stretch + 1) * total // samples
    return (start + (uniform(mix64(stretch), 0) * (end - start)).long()).numpy()


def at_most(source: Source, images: int) -> Source:
    """So many of its images, spread evenly, or all."""
    return source if len(source) <= images else source.subset(spread_rows(len(source), images))


def extract(
    backbone: nn.Module,
    source: Source,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fraction: float = 1.0,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: str = "fp32",
    executor: str = "auto",
    workers: int | None = None,
    augment: Views | None = None,
    interpolation: str = "bilinear",
    progress: bool = False,
    kept: FeatureFile | None = None,
) -> Features:
    """Features of every image of `source`, by the backbone in eval mode.

    The images are centre-cropped to `fraction` of their short side and resized to `image_size`; `augment` replaces that
    by the first view of a recipe. kept: all of them as float16 in a mapped file, made once and gone on with. The
    backbone must be on `device`; each of its modules gets its mode back.
    """
    if kept is not None and (whole := kept.whole()) is not None:
        source.known_bad.update(kept.bad)
        return Features(*whole)
    order = Order(len(source), batch_size, shuffle=False, drop_last=False)
    recipe = augment or _centre_crop(image_size, mean, std, fraction, interpolation)
    with build_pipeline(source, recipe, order, executor=executor, device=device, workers=workers) as pipeline:
        pipeline.seen = kept.done if kept else 0
        left = order.samples - pipeline.seen
        batches = _counted(forward_batches(backbone, pipeline, precision), left, progress)
        if kept is not None:
            return Features(*kept.fill(batches, source.known_bad))
        features, labels = zip(*batches, strict=True)
    return Features(torch.cat([f.cpu() for f in features]), torch.cat([label.cpu() for label in labels]))


def _counted(batches: Iterator[tuple[Tensor, Tensor]], left: int, shown: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with a bar of the images that are left."""
    with progress_bar(None, left, "features", "image", shown) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[0]))


def forward_batches(
    backbone: nn.Module, pipeline: Pipeline, precision: str = "fp32", train_mode: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(n, D) float32 features and (n,) labels, -1 for none, of each batch of an epoch, on its device, no gradient.

    train_mode: BatchNorm uses, and moves its running statistics by, each batch (RSA's probe does).
    """
    if precision not in PRECISIONS:
        raise UserError(f"the precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    dtype = PRECISIONS[precision]
    name = pipeline.recipe.names[0]
    for batch in pipeline:
        with (
            mode(backbone, train_mode),
            torch.no_grad(),
            torch.autocast(pipeline.device.type, dtype, dtype is not None),
        ):
            features = backbone(batch.views[name])
        features = features.flatten(1).float()
        yield features, batch.label if batch.label is not None else features.new_full((len(features),), -1).long()


def raw_pixels(source: Source, size: int = 32, workers: int | None = None) -> Features:
    """The pixels themselves as features, (N, 3 * size * size) in [0, 1]: centre square, bilinear to `size`."""
    return extract(
        nn.Flatten(),
        source,
        size,
        (0.0,) * source.channels,
        (1.0,) * source.channels,
        batch_size=1024,
        workers=workers,
    )


@contextmanager
def mode(model: nn.Module, train: bool) -> Iterator[None]:
    """The model in train or eval mode inside; every module as it was afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _centre_crop(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], fraction: float, interpolation: str
) -> Views:
    recipe = evaluation_views(size, mean, std, fraction)
    view = recipe.views[0]
    return replace(recipe, views=(replace(view, crop=replace(view.crop, interpolation=interpolation)),))
