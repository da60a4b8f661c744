"""The baseline: the same recipe as a user of torchvision writes it, in a DataLoader with worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as v1
from torchvision.transforms import v2

from saccade.base.errors import UserError
from saccade.pipelines.operations import Blur, Grey, Jitter, Operation, Solarise
from saccade.pipelines.sources import FolderSource, Source
from saccade.pipelines.views import Crop, View, Views

FLAVOURS = ("torchvision-pil", "torchvision-v2")


class GaussianBlur:
    """MoCo v2's: PIL's blur with a radius drawn from [low, high]."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class ManyCrops:
    """All views of one image, as MoCo's TwoCropsTransform makes two. A derived view starts from its parent's crop."""

    def __init__(self, recipe: Views, flavour: str) -> None:
        self.names = [(view.name, view.parent) for view in recipe]
        self.prepare = v2.PILToTensor() if flavour == "torchvision-v2" else lambda image: image
        cut, paint = (_cut_v2, _paint_v2) if flavour == "torchvision-v2" else (_cut_pil, _paint_pil)
        self.cut = {view.name: cut(view) for view in recipe if view.parent is None}
        self.paint = {view.name: paint(view, recipe) for view in recipe}

    def __call__(self, image: Image.Image) -> list[Tensor]:
        image, crops = self.prepare(image), {}
        for name, cut in self.cut.items():
            crops[name] = cut(image)
        return [self.paint[name](crops[parent or name]) for name, parent in self.names]


def _cut_pil(view: View) -> Callable:
    crop = _random_crop(view)
    return v1.Compose(
        [v1.RandomResizedCrop(view.size, crop.scale, crop.ratio, _mode(crop)), v1.RandomHorizontalFlip(view.flip)]
    )


def _cut_v2(view: View) -> Callable:
    crop = _random_crop(view)
    return v2.Compose(
        [
            v2.RandomResizedCrop(view.size, crop.scale, crop.ratio, _mode(crop), antialias=True),
            v2.RandomHorizontalFlip(view.flip),
        ]
    )


def _paint_pil(view: View, recipe: Views) -> Callable:
    steps = []
    for o in view.operations:
        if isinstance(o, Jitter):
            steps.append(v1.RandomApply([v1.ColorJitter(o.brightness, o.contrast, o.saturation, o.hue)], p=o.p))
        elif isinstance(o, Grey):
            steps.append(v1.RandomGrayscale(o.p))
        elif isinstance(o, Blur):
            steps.append(v1.RandomApply([GaussianBlur(o.sigma)], p=o.p))
        elif isinstance(o, Solarise):
            steps.append(v1.RandomSolarize(128, p=o.p))
        else:
            raise _unknown(view, o)
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(recipe.mean, recipe.std)])


def _paint_v2(view: View, recipe: Views) -> Callable:
    steps = []
    for o in view.operations:
        if isinstance(o, Jitter):
            steps.append(v2.RandomApply([v2.ColorJitter(o.brightness, o.contrast, o.saturation, o.hue)], p=o.p))
        elif isinstance(o, Grey):
            steps.append(v2.RandomGrayscale(o.p))
        elif isinstance(o, Blur):
            steps.append(v2.RandomApply([v2.GaussianBlur(o.kernel_size, o.sigma)], p=o.p))
        elif isinstance(o, Solarise):
            steps.append(v2.RandomSolarize(128, p=o.p))
        else:
            raise _unknown(view, o)
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.mean, recipe.std)])


def _unknown(view: View, operation: Operation) -> UserError:
    return UserError(f"view {view.name!r}: the torchvision baseline has no {operation.name}; leave the baseline out.")


def _random_crop(view: View) -> Crop:
    if not isinstance(view.crop, Crop):
        raise UserError(f"view {view.name!r} has no random crop; the torchvision baseline is for training recipes.")
    return view.crop


def _mode(crop: Crop) -> v1.InterpolationMode:
    return v1.InterpolationMode(crop.interpolation)


class ViewsDataset(Dataset):
    """Item i: the views of image i and its label (-1 without one)."""

    def __init__(self, source: Source, transform: ManyCrops) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        if isinstance(self.source, FolderSource):
            with Image.open(self.source.folder / self.source.key_of(i)) as file:
                image = file.convert("RGB")
        else:
            image = Image.fromarray(self.source.read(i))
        return self.transform(image), -1 if self.source.labels is None else int(self.source.labels[i])


def baseline_loader(
    source: Source, recipe: Views, flavour: str, batch_size: int, workers: int, device: torch.device
) -> DataLoader:
    """The recipe's views and labels, shuffled without end."""
    views = ViewsDataset(source, ManyCrops(recipe, flavour))
    return plain_loader(views, batch_size, workers, pin=device.type == "cuda")


def plain_loader(data: Dataset, batch_size: int, workers: int, pin: bool = False) -> DataLoader:
    """Shuffled; one permutation after another without end, so that workers outlive an epoch."""
    return DataLoader(
        data,
        batch_size,
        sampler=RandomSampler(data, num_samples=10**9),  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        drop_last=True,
        pin_memory=pin,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
