"""Peers with threads and loops of their own, which make whole batches."""

# Optional packages without types, or with enums that are filled on import.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportPrivateImportUsage=false

# ruff: noqa: SIM102 - a condition of DALI's graph stands alone

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from saccade.pipelines.views import View, Views
from saccade.tools.benchmark.baseline import ManyCrops
from saccade.tools.benchmark.peers.materials import Materials, steps_of


def ffcv_jpg(materials: Materials) -> Iterator[list[Tensor]]:
    return _ffcv(materials, materials.betons["jpg"])


def ffcv_raw(materials: Materials) -> Iterator[list[Tensor]]:
    return _ffcv(materials, materials.betons["raw"])


def _ffcv(materials: Materials, beton: str) -> Iterator[list[Tensor]]:
    loader = _ffcv_loader(beton, materials.recipe, materials.batch_size, materials.workers)
    while True:
        epoch = iter(loader)
        try:
            for views in epoch:
                yield list(views)
        finally:  # an epoch that is left early aborts the interpreter at its exit
            epoch.close()
            epoch.join()


@cache
def _ffcv_loader(beton: str, recipe: Views, batch_size: int, workers: int) -> Any:
    """FFCV's Loader, the file in the page cache; each view is a pipeline of its own: there is no other way to two.
    One for all turns of the process: each compiles its code anew, half a minute."""
    import ffcv.transforms as T
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec

    mean, std = (255 * np.array(values) for values in (recipe.mean, recipe.std))

    def pipeline(view: View) -> Any:
        steps = steps_of(view)
        decoder = RandomResizedCropRGBImageDecoder((view.size, view.size), steps.crop.scale, steps.crop.ratio)
        made = [T.RandomHorizontalFlip(view.flip)]
        if j := steps.jitter:
            made += [T.RandomBrightness(j.brightness, j.p), T.RandomContrast(j.contrast, j.p)]
            made += [T.RandomSaturation(j.saturation, j.p)]
        made += [T.NormalizeImage(mean, std, np.float32), T.ToTensor(), T.ToTorchImage()]
        return PipelineSpec("image", decoder=decoder, transforms=made)

    return Loader(
        beton,
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={**{view.name: pipeline(view) for view in recipe}, "image": None, "label": None},
    )


def dali(materials: Materials) -> Iterator[list[Tensor]]:
    """Decoded once, a random_resized_crop for each view, colour by color_twist, of which no saturation is grey."""
    from nvidia.dali import fn, pipeline_def, types

    small = None if materials.files else materials.images
    rng = np.random.default_rng(0)

    def some() -> list[np.ndarray]:
        assert small is not None
        return list(small[rng.integers(0, len(small), materials.batch_size)])

    def uniform(low: float, high: float) -> Any:
        return fn.random.uniform(range=(low, high))

    def around(amount: float) -> Any:
        return uniform(max(0.0, 1 - amount), 1 + amount)

    def coin(p: float) -> Any:
        return fn.random.coin_flip(probability=p, dtype=types.BOOL)

    def cut(image: Any, view: View) -> Any:
        steps = steps_of(view)
        image = fn.random_resized_crop(
            image, size=view.size, random_area=steps.crop.scale, random_aspect_ratio=steps.crop.ratio, antialias=True
        )
        if steps.jitter is not None:
            j = steps.jitter
            if coin(j.p):
                image = fn.color_twist(
                    image,
                    brightness=around(j.brightness),
                    contrast=around(j.contrast),
                    saturation=around(j.saturation),
                    hue=uniform(-360 * j.hue, 360 * j.hue),
                )
        if steps.grey is not None:
            if coin(steps.grey.p):
                image = fn.color_twist(image, saturation=0.0)
        if steps.blur is not None:
            if coin(steps.blur.p):
                image = fn.gaussian_blur(image, sigma=uniform(*steps.blur.sigma), window_size=steps.blur.kernel_size)
        return fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="CHW",
            mirror=fn.random.coin_flip(probability=view.flip),
            mean=[255 * value for value in materials.recipe.mean],
            std=[255 * value for value in materials.recipe.std],
        )

    @pipeline_def(
        batch_size=materials.batch_size, num_threads=materials.workers, device_id=None, enable_conditionals=True, seed=1
    )
    def graph() -> Any:
        if materials.files:
            encoded, _ = fn.readers.file(files=list(materials.files), random_shuffle=True, name="files")
            image = fn.decoders.image(encoded, output_type=types.RGB)
        else:
            image = fn.external_source(some, batch=True, layout="HWC")
        return tuple([cut(image, view) for view in materials.recipe])

    made = graph()
    made.build()
    while True:
        yield [torch.from_dlpack(views.as_tensor()) for views in made.run()]


def spdl(materials: Materials) -> Iterator[list[Tensor]]:
    """Its threads and its decoder (FFmpeg's); it has no operations on images, so the views are torchvision's v2."""
    import spdl.io  # pyright: ignore[reportMissingImports]
    from spdl.pipeline import PipelineBuilder  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)  # a thread a core makes images already
    crops, small = ManyCrops(materials.recipe, "torchvision-v2"), None if materials.files else materials.images
    crops.prepare = v2.Identity()

    def numbers() -> Iterator[int]:
        while True:
            yield random.randrange(len(materials))

    def make(i: int) -> list[Tensor]:
        if small is None:
            image = spdl.io.to_torch(spdl.io.load_image(materials.files[i]))
        else:
            image = torch.from_numpy(np.array(small[i]))
        return crops(image.permute(2, 0, 1))

    def stacked(images: list[list[Tensor]]) -> list[Tensor]:
        return [torch.stack(views) for views in zip(*images, strict=True)]

    pipeline = (
        PipelineBuilder()
        .add_source(numbers())
        .pipe(make, concurrency=materials.workers)
        .aggregate(materials.batch_size)
        .pipe(stacked)
        .add_sink(2)
        .build(num_threads=materials.workers + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline
