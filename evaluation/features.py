"""Images in, frozen features out: what every evaluation starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.progress import progress_bar
from saccade.evaluation.feature_file import Batch, FeatureFile, Rows
from saccade.pipelines.build import build_pipeline, choose_executor, of_all_processes
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.stream import mix64, uniform
from saccade.pipelines.views import Views, evaluation_views
from saccade.runs.ranks import ONE, Ranks

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
    ranks: Ranks = ONE,
) -> Features:
    """Features of every image of `source`, by the backbone in eval mode.

    The images are centre-cropped to `fraction` of their short side and resized to `image_size`; `augment` replaces that
    by the first view of a recipe. kept: all of them as float16 in a mapped file, made once and gone on with. The
    backbone must be on `device`; each of its modules gets its mode back. ranks: who share the images out among
    themselves, whole batches at a time, so that the features are those of one process; each is given all of them.
    """
    recipe = augment or _centre_crop(image_size, mean, std, fraction, interpolation)
    if ranks.world > 1 and executor == "auto":  # one for all; where they agree, it may still find sizes unequal
        own = choose_executor(executor, source, device).executor
        common = ranks.common("choosing the executor", own, of_all_processes)
        executor = executor if common == own else common

    @contextmanager
    def made(rows: Rows) -> Iterator[Iterator[Batch]]:
        order = Order(rows[1], batch_size, shuffle=False, drop_last=False)
        with build_pipeline(source, recipe, order, executor=executor, device=device, workers=workers) as pipeline:
            pipeline.seen = rows[0]
            batches = forward_batches(backbone, pipeline, precision)
            yield _counted(batches, rows[1] - rows[0], progress, ranks)

    if kept is None and ranks.world == 1:
        with made((0, len(source))) as batches:
            features, labels = zip(*batches, strict=True)
        return Features(torch.cat([f.cpu() for f in features]), torch.cat([label.cpu() for label in labels]))
    file = kept or _passing(source, ranks)
    with ranks.together():
        left = file.left()
        stretches = own_stretches(left, batch_size, ranks)
        found = file.fill(stretches, made, source.known_bad) if left else file.whole()
    assert found is not None, "nothing is left"
    source.report_bad(file.bad)
    if kept is None:
        found = found if ranks.one_machine else tuple(part.clone() for part in found)
        file.remove()
    return Features(*found)


def own_stretches(left: list[Rows], batch_size: int, ranks: Ranks) -> list[Rows]:
    """This process's share of the images that are left: whole batches, one stretch after another."""
    batches = [(a, min(a + batch_size, end)) for first, end in left for a in range(first, end, batch_size)]
    own: list[Rows] = []
    for a, b in batches[ranks.rank * len(batches) // ranks.world : (ranks.rank + 1) * len(batches) // ranks.world]:
        own = [*own[:-1], (own[-1][0], b)] if own and own[-1][1] == a else [*own, (a, b)]
    return own


def _passing(source: Source, ranks: Ranks) -> FeatureFile:
    """One that brings the processes' features together, in full precision, and is gone once each has them."""
    key = ranks.of_main("the features", f"passing-{uuid4().hex}")
    return FeatureFile(key, len(source), None, np.float32, "set SACCADE_CACHE to another folder", ranks)


def _counted(batches: Iterator[Batch], left: int, shown: bool, ranks: Ranks) -> Iterator[Batch]:
    """The same, with a bar of the images that are left."""
    with progress_bar(None, left, "features", "image", shown) as bar:
        for batch in batches:
            ranks.at("extracting features")
            yield batch
            bar.update(len(batch[0]))


def forward_batches(
    backbone: nn.Module, pipeline: Pipeline, precision: str = "fp32", train_mode: bool = False
) -> Iterator[Batch]:
    """(n, D) float32 features and (n,) labels, -1 for none, of each batch of an epoch, on its device, no gradient.

    train_mode: BatchNorm uses, and moves its running statistics by, each batch (RSA's probe does). Where the order is
    not even, n may be 0.
    """
    if precision not in PRECISIONS:
        raise UserError(f"the precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    dtype = PRECISIONS[precision]
    name, order = pipeline.recipe.names[0], pipeline.order
    for step, batch in enumerate(pipeline):
        own = len(batch.index) if order.even else order.share(step)[0]
        batch = batch[:own] if train_mode else batch  # an image that is not counted must not move statistics either
        with (
            mode(backbone, train_mode),
            torch.no_grad(),
            torch.autocast(pipeline.device.type, dtype, dtype is not None),
        ):
            features = backbone(batch.views[name])
        features, batch = features[:own].flatten(1).float(), batch[:own]
        yield features, batch.label if batch.label is not None else features.new_full((len(features),), -1).long()


def raw_pixels(source: Source, size: int = 32, workers: int | None = None, ranks: Ranks = ONE) -> Features:
    """The pixels themselves as features, (N, 3 * size * size) in [0, 1]: centre square, bilinear to `size`."""
    return extract(
        nn.Flatten(),
        source,
        size,
        (0.0,) * source.channels,
        (1.0,) * source.channels,
        batch_size=1024,
        workers=workers,
        ranks=ranks,
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
