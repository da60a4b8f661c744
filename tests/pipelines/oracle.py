"""What torchvision makes of drawn parameters, one image at a time, in float64: the judge of every renderer."""

from dataclasses import replace

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.views import View, Views


def cut(pixels: Tensor, view: View, params: ViewParams) -> Tensor:
    """pixels (3, H, W) uint8, one sample's params -> (3, S, S) float64 in [0, 1]."""
    top, left, height, width = params.box[0].tolist()
    image = F.resized_crop(
        pixels.double() / 255,
        top,
        left,
        height,
        width,
        [view.size] * 2,
        F.InterpolationMode(view.crop.interpolation),
        antialias=True,
    )
    image = image.clamp(0, 1)  # as uint8 images end there; torchvision lets a float bicubic overshoot
    return F.hflip(image) if params.flip else image


def colour(image: Tensor, view: View, params: ViewParams, recipe: Views) -> Tensor:
    """image (3, S, S) float64, one sample's params -> the finished view. Knows jitter, grey, blur and solarise."""
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for name, drawn in ((name, params.values(name, 0)) for name in view.keyed):
        if name == "jitter":
            factors = [drawn[factor] for factor in ("brightness", "contrast", "saturation", "hue")]
            for k in drawn["order"]:
                image = adjust[k](image, factors[k])
        elif name == "blur" and drawn["sigma"] > 0:
            image = F.gaussian_blur(image, [view["blur"].kernel_size] * 2, [drawn["sigma"]] * 2)
        elif drawn["chosen"]:
            image = F.rgb_to_grayscale(image, 3) if name == "grey" else F.solarize(image, 0.5)
    return F.normalize(image, list(recipe.mean), list(recipe.std))


def views_of(images: list[Tensor] | Tensor, recipe: Views, params: dict[str, ViewParams]) -> dict[str, Tensor]:
    """images: N tensors (3, H, W) uint8 of any sizes -> name -> (N, 3, S, S) float64."""
    views = {}
    for view in recipe:
        one = [params[view.name][n : n + 1] for n in range(len(images))]
        views[view.name] = torch.stack(
            [colour(cut(x, recipe.geometry_of(view), p), view, p, recipe) for x, p in zip(images, one, strict=True)]
        )
    return views


def drawn(recipe: Views, images: list[Tensor] | Tensor, seed: int = 0) -> dict[str, ViewParams]:
    size = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).view(-1, 2)
    return draw(recipe, seed, 0, torch.arange(len(images)), size)


def changed(params: ViewParams, columns: dict[str, Tensor]) -> ViewParams:
    """With other values in the columns named, e.g. "blur.sigma"."""
    drawn = {key: dict(old) for key, old in params.drawn.items()}
    for name, value in columns.items():
        key, column = name.split(".")
        drawn[key][column] = value
    return replace(params, drawn=drawn)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(N, 3, H, W) uint8: smooth colour with noise, greys, black, white and saturated areas, so every branch is met."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    image = F.resize(coarse, [height, width], antialias=False) * 1.4 - 0.2
    image = image + 0.1 * torch.randn(count, 3, height, width, generator=generator)
    image[::4] = image[::4].mean(dim=1, keepdim=True)
    return (image.clamp(0, 1) * 255).round().byte()
