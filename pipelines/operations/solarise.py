"""Solarise: bright pixels inverted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Solarise(Operation):
    """x -> 1 - x where x >= 0.5 (the same pixels as PIL's threshold 128 on uint8)."""

    position: ClassVar[int | None] = 10
    p: float = 0.2

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return torch.where(image >= 0.5, 1 - image, image)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.solarize(image, 0.5)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return ImageOps.solarize(image, 128)
