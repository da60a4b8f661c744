"""Rotate: by any angle, about the centre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation
from saccade.pipelines.operations.warp import turning, warp


@dataclass(frozen=True)
class Rotate(Operation):
    """torchvision's RandomRotation, bilinear, size kept: an angle uniform in [-degrees, degrees], corners of `fill`.

    Draws "angle", (N,) float32 degrees counter-clockwise, 0 where not chosen.
    """

    numbers: ClassVar[int] = 1
    identity: ClassVar[Mapping[str, float]] = {"angle": 0.0}
    gain: ClassVar[float] = 1.0
    p: float = 0.5
    degrees: float = 30.0
    fill: float = 0.0

    def fault(self, size: int) -> str:
        if not 0 <= self.degrees <= 180:
            return f"degrees = {self.degrees}; give a value from 0 to 180."
        return "" if 0 <= self.fill <= 1 else f"fill = {self.fill}; give a value from 0 to 1."

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        return {"angle": (self.degrees * (2 * u[:, 0] - 1)).float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return warp(image, turning(drawn["angle"]), self.fill)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.rotate(image - self.fill, drawn["angle"], F.InterpolationMode.BILINEAR) + self.fill

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        grey = round(255 * self.fill)
        return image.rotate(drawn["angle"], Image.Resampling.BILINEAR, fillcolor=(grey, grey, grey))

    def pil_differs(self) -> tuple[float, float, str]:
        return 1.5, 255.0, "it does not mix the outermost pixels with what lies outside"

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return f"rotate {drawn['angle']:+.0f}"

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"angle": (-self.degrees, self.degrees)}
