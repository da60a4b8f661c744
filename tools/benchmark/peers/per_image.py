"""Peers that make one image's views at a time, in the worker processes of torch's DataLoader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from saccade.pipelines.views import View, Views
from saccade.tools.benchmark.baseline import ManyCrops, plain_loader
from saccade.tools.benchmark.peers.materials import Materials, steps_of


class Images(Dataset):
    """Item i: the views of image i. read: of a file; small images come as (H, W, 3) uint8 from their array."""

    def __init__(self, materials: Materials, read: Callable[[str], Any], views: Callable[[Any], list[Tensor]]) -> None:
        self.materials, self.read, self.views = materials, read, views
        self.images = None if materials.files else materials.images

    def __len__(self) -> int:
        return len(self.materials)

    def __getitem__(self, i: int) -> list[Tensor]:
        files = self.materials.files
        return self.views(self.read(files[i]) if files else np.array(self.images[i]))  # pyright: ignore[reportOptionalSubscript]


def _batches(materials: Materials, read: Callable, views: Callable[[Any], list[Tensor]]) -> Iterator[list[Tensor]]:
    yield from plain_loader(Images(materials, read, views), materials.batch_size, materials.workers)


def albumentations(materials: Materials) -> Iterator[list[Tensor]]:
    """cv2 decodes, as its documentation has it, with one thread a worker."""
    import albumentations as A  # pyright: ignore[reportMissingImports]
    import cv2
    from albumentations.pytorch import ToTensorV2  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(0)

    def composed(view: View) -> A.Compose:
        steps, made = steps_of(view), []
        made += [A.RandomResizedCrop((view.size, view.size), steps.crop.scale, steps.crop.ratio)]
        made += [A.HorizontalFlip(p=view.flip)]
        if j := steps.jitter:
            made += [A.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue, p=j.p)]
        made += [A.ToGray(p=steps.grey.p)] if steps.grey else []
        made += [A.GaussianBlur(0, steps.blur.sigma, p=steps.blur.p)] if steps.blur else []
        return A.Compose([*made, A.Normalize(materials.recipe.mean, materials.recipe.std), ToTensorV2()])

    cut = [composed(view) for view in materials.recipe]

    def read(file: str) -> np.ndarray:
        image = cv2.imread(file)
        assert image is not None
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    return _batches(materials, read, lambda image: [one(image=image)["image"] for one in cut])


def kornia(materials: Materials) -> Iterator[list[Tensor]]:
    """Its own decoder; one image at a time, as photos differ in size."""
    import kornia.augmentation as K  # pyright: ignore[reportMissingImports]
    from kornia.io import ImageLoadType, load_image  # pyright: ignore[reportMissingImports]

    def composed(view: View) -> K.AugmentationSequential:
        steps, made = steps_of(view), []
        made += [K.RandomResizedCrop((view.size, view.size), steps.crop.scale, steps.crop.ratio)]
        made += [K.RandomHorizontalFlip(p=view.flip)]
        if j := steps.jitter:
            made += [K.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue, p=j.p)]
        made += [K.RandomGrayscale(p=steps.grey.p)] if steps.grey else []
        if b := steps.blur:
            made += [K.RandomGaussianBlur((b.kernel_size, b.kernel_size), b.sigma, p=b.p)]
        mean, std = (list(values) for values in (materials.recipe.mean, materials.recipe.std))
        return K.AugmentationSequential(*made, K.Normalize(mean, std))

    cut = [composed(view) for view in materials.recipe]

    def views(image: Tensor | np.ndarray) -> list[Tensor]:
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return [one(image[None])[0] for one in cut]

    return _batches(materials, lambda file: load_image(file, ImageLoadType.RGB32), views)


def lightly(materials: Materials) -> Iterator[list[Tensor]]:
    """Its transforms for PIL images: MultiCropTranform, which its SwAV uses, with its own blur."""
    from lightly.transforms.gaussian_blur import GaussianBlur  # pyright: ignore[reportMissingImports]
    from lightly.transforms.multi_crop_transform import MultiCropTranform  # pyright: ignore[reportMissingImports]
    from torchvision.transforms import v2

    def composed(view: View, recipe: Views) -> Callable:
        steps, made = steps_of(view), [v2.RandomHorizontalFlip(view.flip)]
        if j := steps.jitter:
            made += [v2.RandomApply([v2.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue)], p=j.p)]
        made += [v2.RandomGrayscale(steps.grey.p)] if steps.grey else []
        made += [GaussianBlur(sigmas=steps.blur.sigma, prob=steps.blur.p)] if steps.blur else []
        made += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.mean, recipe.std)]
        finished = v2.Compose(made)
        low, high = steps.crop.scale
        return MultiCropTranform((view.size,), (1,), (low,), (high,), finished)  # pyright: ignore[reportArgumentType]

    cut = [composed(view, materials.recipe) for view in materials.recipe]

    def views(image: Image.Image | np.ndarray) -> list[Tensor]:
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        return [one(image)[0] for one in cut]

    def read(file: str) -> Image.Image:
        with Image.open(file) as opened:
            return opened.convert("RGB")

    return _batches(materials, read, views)


def webdataset(materials: Materials) -> Iterator[list[Tensor]]:
    """Its own pipeline over tar shards: shuffled, decoded and batched in the workers; the views are torchvision's."""
    import webdataset as wds

    crops = ManyCrops(materials.recipe, "torchvision-pil")
    data = (
        wds.WebDataset(list(materials.shards), resampled=True, shardshuffle=False)  # pyright: ignore
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg;ppm")
        .map_tuple(crops)
        .batched(materials.batch_size, partial=False, collation_fn=default_collate)
    )
    for (views,) in wds.WebLoader(data, batch_size=None, num_workers=materials.workers, worker_init_fn=_one_thread):  # pyright: ignore
        yield views


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    random.seed(torch.initial_seed())
