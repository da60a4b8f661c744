"""Equalise: every level as often as every other, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Equalise(Operation):
    """PIL's histogram equalisation, on the image rounded to 8 bits: its 256 levels are what is counted."""

    gain: ClassVar[float] = 4.0
    p: float = 0.2

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return equalised(image)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return ImageOps.equalize(image)

    def jump(self) -> float:
        return 255.0


def equalised(image: Tensor) -> Tensor:
    """(..., 3, H, W) floats, by torchvision's tables."""
    return F.equalize((image * 255).round().byte()).to(image.dtype) / 255
