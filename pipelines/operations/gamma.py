"""Gamma: brighter or darker middle tones, black and white as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Gamma(Operation):
    """x -> x^gamma with gamma uniform in `gamma`, torchvision's adjust_gamma. Draws "gamma", (N,) float32."""

    numbers: ClassVar[int] = 1
    identity: ClassVar[Mapping[str, float]] = {"gamma": 1.0}
    p: float = 0.5
    gamma: tuple[float, float] = (0.7, 1.5)

    def fault(self, size: int) -> str:
        return "" if 0 < self.gamma[0] <= self.gamma[1] else f"gamma = {self.gamma}; give two rising positive numbers."

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        low, high = self.gamma
        return {"gamma": (low + (high - low) * u[:, 0]).float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return image ** drawn["gamma"][:, None, None, None].to(image.dtype)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return _by_torchvision(image, drawn["gamma"])

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return _by_torchvision(image, drawn["gamma"])

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"gamma": (min(self.gamma[0], 1.0), max(self.gamma[1], 1.0))}


def _by_torchvision(image: Any, gamma: float) -> Any:
    return F.adjust_gamma(image, gamma)
