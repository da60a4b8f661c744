"""Posterise: fewer levels in each channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Posterise(Operation):
    """2^bits levels in each channel: x -> floor(2^bits x) / 2^bits, as torchvision's RandomPosterize on floats."""

    p: float = 0.2
    bits: int = 4

    def fault(self, size: int) -> str:
        return "" if 1 <= self.bits <= 8 else f"bits = {self.bits}; give 1 to 8."

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        levels = 2**self.bits
        return (image * levels).floor().clamp(max=levels - 1) / levels

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.posterize(image, self.bits)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return ImageOps.posterize(image, self.bits)

    def jump(self) -> float:
        return 256 / 2**self.bits
