"""The images that a run is measured on again and again: read once and kept, where memory holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from saccade.base.machine import available_cpus, available_memory
from saccade.base.processes import local_processes
from saccade.base.progress import progress_bar
from saccade.evaluation.features import Features
from saccade.models.backbone import shown_share
from saccade.pipelines.build import build_pipeline, choose_executor, common_size
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.arrays import ArraySource
from saccade.pipelines.views import Views, evaluation_views
from saccade.pipelines.whole import UnequalSizes, load_images

PART = 8  # of the memory that is free, one such part at most for each set of images
RAW = 32  # pixels of the images that stand for themselves


@dataclass(frozen=True)
class Held:
    """images: shown to a backbone by `share` of their short side and `executor`; pixels: their own, as raw_pixels has
    them, where they were made on the way."""

    images: Source
    share: float
    executor: str = "auto"
    pixels: Features | None = None


def kept_as(source: Source, size: int) -> tuple[str, float]:
    """How `held` will keep the images ("decoded", "shown"), and about how many bytes of memory that takes; ("", 0)
    where it keeps none of its own."""
    if source.array() is not None:
        return "", 0.0
    if choose_executor("auto", source, "cpu").executor == "resident":
        height, width = common_size(source) or (0, 0)
        return "decoded", float(len(source) * height * width * source.channels)
    shown = len(source) * source.channels * (size * size + 4.0 * RAW * RAW)
    return ("shown", shown) if shown <= available_memory() / local_processes() / PART else ("", 0.0)


def held(source: Source, parent: Source, size: int, device: torch.device | str, workers: int | None) -> Held:
    """Small images decoded; of photos what a backbone of `size` pixels is shown, rounded to 8 bits; or, where memory
    does not hold them, the source itself, read anew every time. What cannot be read is told to `parent`."""
    share, (how, _) = shown_share(size), kept_as(source, size)
    try:
        if how == "decoded":
            return _readable(source, Held(_decoded(source, available_cpus() if workers is None else workers), share))
        if how == "shown":
            return _readable(source, _shown(source, size, share, device, workers))
    except UnequalSizes:
        pass
    finally:
        parent.known_bad.update(source.known_bad)
    return Held(source, share)


def _readable(source: Source, all_: Held) -> Held:
    """Without the images that others stood in for: a stand-in finds its own likeness and is counted as right."""
    rows = (
        np.array([i for i in range(len(source)) if source.name_of(i) not in source.known_bad])
        if source.known_bad
        else []
    )
    if not len(rows) or len(rows) == len(source):
        return all_
    pixels = all_.pixels and Features(all_.pixels.features[rows], all_.pixels.labels[rows])
    return replace(all_, images=all_.images.subset(rows, all_.images.name), pixels=pixels)


def _decoded(source: Source, workers: int) -> Source:
    images, shown = load_images(source, workers, shown=True)
    labels = None if source.labels is None else source.labels[shown.numpy()]
    return ArraySource(source.name, images.permute(0, 2, 3, 1).numpy(), labels, source.classes)


def _shown(source: Source, size: int, share: float, device: torch.device | str, workers: int | None) -> Held:
    plain = ((0.0,) * source.channels, (1.0,) * source.channels)
    parts = (evaluation_views(side, *plain, part).views[0] for side, part in ((size, share), (RAW, 1.0)))
    views = Views(tuple(replace(v, name=name) for v, name in zip(parts, ("shown", "pixels"), strict=True)), *plain)
    images, pixels, labels = np.empty((len(source), size, size, source.channels), np.uint8), [], []
    order, done = Order(len(source), 128, shuffle=False, drop_last=False), 0
    with (
        build_pipeline(source, views, order, device=device, workers=workers) as pipeline,
        progress_bar(None, len(source), "images that kNN is measured on", "image") as bar,
    ):
        for batch in pipeline:
            rounded = (255 * batch.views["shown"].clamp(0, 1)).round().byte().permute(0, 2, 3, 1)
            images[done : done + len(rounded)] = rounded.cpu().numpy()
            pixels.append(batch.views["pixels"].flatten(1).float().cpu())
            labels.append(batch.index.new_full((len(rounded),), -1) if batch.label is None else batch.label.cpu())
            done += len(rounded)
            bar.update(len(rounded))
    known = torch.cat(labels)
    kept = ArraySource(source.name, images, known.numpy(), source.classes)
    return Held(kept, 1.0, "reference", Features(torch.cat(pixels), known))  # no copy of all on the device
