"""Colour jitter: brightness, contrast, saturation and hue in drawn order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from saccade.pipelines.operations.grey import luminance
from saccade.pipelines.operations.operation import Columns, Operation

ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")  # what a number of the column "order" stands for
_ORDERS = torch.tensor(list(permutations(range(4))), dtype=torch.uint8)  # 24 x 4


@dataclass(frozen=True)
class Jitter(Operation):
    """Colour jitter with the meaning of torchvision's ColorJitter, applied with probability `p`, in drawn order.

    Draws "brightness", "contrast", "saturation" (N,) float32 factors, 1 where not chosen; "hue" (N,) float32 shift,
    fraction of the colour circle, 0 where not chosen; "order" (N, 4) uint8 indices into ADJUSTMENTS as applied.
    """

    position: ClassVar[int | None] = 1
    numbers: ClassVar[int] = 5
    identity: ClassVar[Mapping[str, float]] = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # fraction of the colour circle, at most 0.5
    p: float = 0.8

    def fault(self, size: int) -> str:
        return "" if 0.0 <= self.hue <= 0.5 else f"hue = {self.hue}; give a value from 0 to 0.5."

    def of_colour(self) -> dict[str, str]:
        return {name: "0" for name in ("saturation", "hue") if getattr(self, name)}

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        factors = {name: _factor(u[:, k], getattr(self, name)) for k, name in enumerate(ADJUSTMENTS[:3])}
        hue = ((2 * u[:, 3] - 1) * self.hue).float()
        return {**factors, "hue": hue, "order": _ORDERS.to(u.device)[(u[:, 4] * 24).long()]}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        """The first three are all blends f x + (1 - f) g with g black, the mean luminance or the luminance: each of the
        four positions is one blend for the whole batch, and a hue shift for the quarter of it whose turn that is."""
        hue, order = drawn["hue"], drawn["order"]
        factors = torch.stack([*(drawn[name] for name in ADJUSTMENTS[:3]), torch.ones_like(hue)], dim=1)  # N x 4
        for position in range(4):
            adjustment = order[:, position].long()
            factor = factors.gather(1, adjustment[:, None])[:, :, None, None]
            luma = luminance(image) if image.shape[1] == 3 else image.mean(1, keepdim=True)
            mean = luma.mean(dim=(2, 3), keepdim=True)
            is_contrast = (adjustment == 1)[:, None, None, None]
            is_saturation = (adjustment == 2)[:, None, None, None]
            target = torch.where(is_contrast, mean, torch.where(is_saturation, luma, torch.zeros_like(luma)))
            blended = (factor * image + (1 - factor) * target).clamp(0, 1)
            is_hue = adjustment == 3
            if image.shape[1] != 3:
                shifted = image
            elif image.device.type == "cpu":
                shifted = image.clone()
                shifted[is_hue] = shift_hue(image[is_hue], hue[is_hue])
            else:  # picking rows would make the host wait for the device
                shifted = shift_hue(image, hue)
            image = torch.where(is_hue[:, None, None, None], shifted, blended)
        return image

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return _by_torchvision(image, drawn)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return _by_torchvision(image, drawn)

    def pil_differs(self) -> tuple[float, float, str]:
        return (2.0, 40.0, "its HSV has 256 hues") if self.hue else super().pil_differs()

    def ranges(self) -> dict[str, tuple[float, float]]:
        factors = {name: getattr(self, name) for name in ADJUSTMENTS[:3]}
        return {name: (max(0.0, 1 - amount), 1 + amount) for name, amount in factors.items()} | {
            "hue": (-self.hue, self.hue)
        }

    def caption(self, drawn: Mapping[str, Any]) -> str:
        names = [ADJUSTMENTS[k] for k in drawn["order"]]
        return " ".join(f"{name[0]}{drawn[name]:{'+' if name == 'hue' else ''}.2f}" for name in names)

    def cases(self, size: int) -> dict[str, Operation]:
        still = Jitter(0.0, 0.0, 0.0, 0.0, p=1.0)
        alone = {name: replace(still, **{name: getattr(self, name)}) for name in ADJUSTMENTS}
        return {**alone, "jitter, any order": replace(self, p=1.0)}


def _factor(u: Tensor, amount: float) -> Tensor:
    """(N,) float32, uniform in [max(0, 1 - amount), 1 + amount]."""
    low = max(0.0, 1.0 - amount)
    return (low + (1.0 + amount - low) * u).float()


def _by_torchvision(image: Any, drawn: Mapping[str, Any]) -> Any:
    for k in drawn["order"]:
        image = getattr(F, f"adjust_{ADJUSTMENTS[k]}")(image, drawn[ADJUSTMENTS[k]])
    return image


def shift_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N,) of the colour circle, in HSV, exactly."""
    red, green, blue = image.unbind(1)
    value, chroma = image.amax(1), image.amax(1) - image.amin(1)
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * shift[:, None, None]
    # Each channel is the value less the chroma, faded in over the sextants around its own opposite hue.
    distance = [(offset + sextant).remainder(6) for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in distance], dim=1)
