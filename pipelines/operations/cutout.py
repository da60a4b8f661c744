"""Cutout: a grey square somewhere, partly outside perhaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Cutout(Operation):
    """A square of `side` pixels with its centre anywhere in the view (DeVries and Taylor, arXiv 1708.04552), begun at
    the border where it would begin outside, as FixMatch's.

    Draws "x", "y" (N,) float32, the centre in shares of the view's side.
    """

    numbers: ClassVar[int] = 2
    gain: ClassVar[float] = 1.0
    p: float = 0.5
    side: int = 16
    fill: float = 127 / 255

    def fault(self, size: int) -> str:
        if self.side < 1:
            return f"side = {self.side}; give 1 pixel or more."
        return "" if 0 <= self.fill <= 1 else f"fill = {self.fill}; give a value from 0 to 1."

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        return {"x": u[:, 0].float(), "y": u[:, 1].float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        rows, columns = (self._covered(drawn[axis], n) for axis, n in zip("yx", image.shape[2:], strict=True))
        return image.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], self.fill)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        size = image.shape[-1]
        top, left = (int(max(0.0, drawn[axis] * size - self.side / 2)) for axis in "yx")
        height, width = min(self.side, size - top), min(self.side, size - left)
        return F.erase(image, top, left, height, width, torch.tensor(self.fill))

    def _covered(self, centre: Tensor, size: int) -> Tensor:
        first = (centre.double() * size - self.side / 2).clamp(min=0).floor()
        pixel = torch.arange(size, device=centre.device)
        return (pixel >= first[:, None]) & (pixel < (first + self.side)[:, None])

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return f"cutout {self.side}"
