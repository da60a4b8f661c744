"""Grey: the luminance in all three channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, torchvision's rgb_to_grayscale


@dataclass(frozen=True)
class Grey(Operation):
    """Grey with the meaning of torchvision's RandomGrayscale."""

    position: ClassVar[int | None] = 7
    gain: ClassVar[float] = 1.0
    p: float = 0.2

    def of_colour(self) -> dict[str, str]:
        return {"": "none"}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return luminance(image).repeat(1, 3, 1, 1)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.rgb_to_grayscale(image, num_output_channels=3)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return F.to_grayscale(image, 3)


def luminance(image: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    return (LUMA[0] * image[:, 0] + LUMA[1] * image[:, 1] + LUMA[2] * image[:, 2])[:, None]
