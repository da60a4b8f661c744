"""RandAugment: some operations of a pool, drawn with their strengths; the pool and the strengths are FixMatch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from saccade.pipelines.operations.equalise import equalised
from saccade.pipelines.operations.grey import luminance
from saccade.pipelines.operations.operation import Columns, Operation, on_chosen
from saccade.pipelines.operations.warp import turning, warp

_MOST = 8  # operations on one view
Change = Callable[[Tensor, Columns], Tensor]
PilChange = Callable[[Image.Image, int, int], Image.Image]


@dataclass(frozen=True)
class RandAugment(Operation):
    """`count` operations of POOL one after the other, each drawn with replacement, at a level of 1 to 9 of 10 and with
    probability `each`. ReSSL's "strong" switch is RandAugment() and then Cutout(p=1.0).

    Draws (N, 8) columns, of which `count` count: "member" uint8 index into POOL, "level" uint8, "taken" bool, and
    "backwards" bool, the sign of what has a direction. Source: Sohn et al. 2020 (arXiv 2001.07685), after Cubuk et al.
    """

    numbers: ClassVar[int] = 4 * _MOST
    identity: ClassVar[Mapping[str, float]] = {"taken": False}
    gain: ClassVar[float] = 4.0
    p: float = 1.0
    count: int = 5
    each: float = 0.5

    def fault(self, size: int) -> str:
        if not 1 <= self.count <= _MOST:
            return f"count = {self.count}; give 1 to {_MOST}."
        return "" if 0 <= self.each <= 1 else f"each = {self.each} is no probability; give a value from 0 to 1."

    def of_colour(self) -> dict[str, str]:
        return {"": "none"}

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        member, level, taken, backwards = u.split(_MOST, dim=1)
        return {
            "member": (member * len(POOL)).byte(),
            "level": (1 + 9 * level).byte(),
            "taken": (taken < self.each) & (torch.arange(_MOST, device=u.device) < self.count),
            "backwards": backwards < 0.5,
        }

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        for slot in range(self.count):
            strength = drawn["level"][:, slot].double() / 10
            sign = torch.where(drawn["backwards"][:, slot], -1.0, 1.0)
            for k, (change, _) in enumerate(POOL.values()):
                chosen = drawn["taken"][:, slot] & (drawn["member"][:, slot] == k)
                image = on_chosen(change, image, {"chosen": chosen, "strength": strength, "sign": sign})
        return image

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        for member, level, sign in _steps(drawn):
            image = POOL[member][1](image, level, sign)
        return image

    def jump(self) -> float:
        return 255.0

    def pil_differs(self) -> tuple[float, float, str]:
        return 3.0, 255.0, "a level more or less is then stretched"

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return " ".join(f"{member}{level}" for member, level, _ in _steps(drawn)) or self.name


def _steps(drawn: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Name, level and sign of what is done to one sample."""
    columns = zip(drawn["member"], drawn["level"], drawn["taken"], drawn["backwards"], strict=True)
    names = list(POOL)
    return [(names[member], level, -1 if backwards else 1) for member, level, taken, backwards in columns if taken]


def _blend(image: Tensor, target: Tensor, drawn: Columns) -> Tensor:
    """Factor 0.05 to 0.95 of the image, the rest of the target; PIL's enhancers."""
    factor = (0.05 + 0.9 * drawn["strength"]).to(image.dtype)[:, None, None, None]
    return (factor * image + (1 - factor) * target).clamp(0, 1)


def _contrast(image: Tensor, drawn: Columns) -> Tensor:
    return _blend(image, luminance(image).mean(dim=(2, 3), keepdim=True), drawn)


def _posterise(image: Tensor, drawn: Columns) -> Tensor:
    step = 2 ** (4 - (4 * drawn["strength"]).floor())[:, None, None, None].to(image.dtype)  # 8 bits less the kept ones
    return (((image * 255).round() / step).floor() * step) / 255


def _rotate(image: Tensor, drawn: Columns) -> Tensor:
    return warp(image, turning((30 * drawn["strength"]).floor() * drawn["sign"]), mode="nearest")


def _solarise(image: Tensor, drawn: Columns) -> Tensor:
    threshold = (256 - (256 * drawn["strength"]).floor())[:, None, None, None].to(image.dtype)
    return torch.where(image * 255 > threshold - 0.5, 1 - image, image)


def _shear(axis: int) -> Change:
    def apply(image: Tensor, drawn: Columns) -> Tensor:
        amount = 0.3 * drawn["strength"] * drawn["sign"]
        matrix = torch.eye(2, 3, dtype=torch.float64, device=image.device).repeat(len(image), 1, 1)
        matrix[:, axis, 1 - axis] = amount
        matrix[:, axis, 2] = amount * image.shape[2 + axis] / 2  # PIL's corner, not the centre, stays where it is
        return warp(image, matrix, mode="nearest")

    return apply


def _translate(axis: int) -> Change:
    def apply(image: Tensor, drawn: Columns) -> Tensor:
        matrix = torch.eye(2, 3, dtype=torch.float64, device=image.device).repeat(len(image), 1, 1)
        matrix[:, axis, 2] = 0.3 * drawn["strength"] * drawn["sign"] * image.shape[3 - axis]
        return warp(image, matrix, mode="nearest")

    return apply


def _enhanced(kind: Any) -> PilChange:
    return lambda image, level, sign: kind(image).enhance(0.05 + 0.9 * level / 10)


def _moved(coefficients: Callable[[float, int], tuple[float, ...]]) -> PilChange:
    def apply(image: Image.Image, level: int, sign: int) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients(0.3 * level / 10 * sign, image.width))

    return apply


# name -> what it does to a batch, and to one image of PIL's at (level, sign)
POOL: dict[str, tuple[Change, PilChange]] = {
    "autocontrast": (lambda x, d: F.autocontrast(x), lambda image, level, sign: ImageOps.autocontrast(image)),
    "brightness": (lambda x, d: _blend(x, torch.zeros_like(x), d), _enhanced(ImageEnhance.Brightness)),
    "colour": (lambda x, d: _blend(x, luminance(x), d), _enhanced(ImageEnhance.Color)),
    "contrast": (_contrast, _enhanced(ImageEnhance.Contrast)),
    "equalise": (lambda x, d: equalised(x), lambda image, level, sign: ImageOps.equalize(image)),
    "identity": (lambda x, d: x, lambda image, level, sign: image),
    "posterise": (_posterise, lambda image, level, sign: ImageOps.posterize(image, int(4 * level / 10) + 4)),
    "rotate": (_rotate, lambda image, level, sign: image.rotate(sign * int(30 * level / 10))),
    "sharpness": (lambda x, d: _blend(x, F.adjust_sharpness(x, 0.0), d), _enhanced(ImageEnhance.Sharpness)),
    "shear_x": (_shear(0), _moved(lambda v, size: (1, v, 0, 0, 1, 0))),
    "shear_y": (_shear(1), _moved(lambda v, size: (1, 0, 0, v, 1, 0))),
    "solarise": (_solarise, lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level / 10))),
    "translate_x": (_translate(0), _moved(lambda v, size: (1, 0, v * size, 0, 1, 0))),
    "translate_y": (_translate(1), _moved(lambda v, size: (1, 0, 0, 0, 1, v * size))),
}
