"""Erase: a rectangle of one colour over a part of the view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation

_TRIES = 10


@dataclass(frozen=True)
class Erase(Operation):
    """torchvision's RandomErasing, before normalisation: a rectangle of `scale` of the area and height/width `ratio`,
    drawn again where it does not fit, at most ten times.

    Draws "height", "width" (N,) float32 shares of the view's sides, 0 where nothing fitted, and "top", "left" (N,)
    float32, where it lies in the room that is left, 0 to 1.
    """

    numbers: ClassVar[int] = 2 * _TRIES + 2
    identity: ClassVar[Mapping[str, float]] = {"height": 0.0, "width": 0.0}
    gain: ClassVar[float] = 1.0
    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: float = 0.0

    def fault(self, size: int) -> str:
        (low, high), (flat, tall) = self.scale, self.ratio
        if not 0 < low <= high <= 1 or not 0 < flat <= tall:
            return f"scale {self.scale} and ratio {self.ratio} must be rising and positive, the scale at most 1."
        return "" if 0 <= self.fill <= 1 else f"fill = {self.fill}; give a value from 0 to 1."

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        (low, high), (flat, tall) = self.scale, map(math.log, self.ratio)
        area = low + (high - low) * u[:, :_TRIES]
        ratio = torch.exp(flat + (tall - flat) * u[:, _TRIES : 2 * _TRIES])
        height, width = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
        fits = (height < 1) & (width < 1)
        first = fits.int().argmax(dim=1, keepdim=True)
        fitted = fits.any(dim=1)
        sides = {
            name: torch.where(fitted, side.gather(1, first).squeeze(1), 0.0).float()
            for name, side in (("height", height), ("width", width))
        }
        return {**sides, "top": u[:, -2].float(), "left": u[:, -1].float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        rows = _covered(drawn["top"], drawn["height"], image.shape[2])
        columns = _covered(drawn["left"], drawn["width"], image.shape[3])
        return image.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], self.fill)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        size = image.shape[-1]
        height, width = (round(drawn[side] * size) for side in ("height", "width"))
        top = min(int(drawn["top"] * (size - height + 1)), size - height)
        left = min(int(drawn["left"] * (size - width + 1)), size - width)
        return F.erase(image, top, left, height, width, torch.tensor(self.fill))

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return f"erase {100 * drawn['height'] * drawn['width']:.0f}%"


def _covered(place: Tensor, share: Tensor, size: int) -> Tensor:
    """(N, size) bool: the pixels of one side that the rectangle covers."""
    length = (share.double() * size).round()
    first = (place.double() * (size - length + 1)).floor().minimum(size - length)
    pixel = torch.arange(size, device=place.device)
    return (pixel >= first[:, None]) & (pixel < (first + length)[:, None])
