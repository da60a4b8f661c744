"""Turn: by quarters, exactly; for images without an above and below, as satellites' and microscopes' are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Turn(Operation):
    """One, two or three quarter turns, equally often: with p = 0.75 all four directions are equally likely.

    Draws "quarters", (N,) int64 counter-clockwise, 0 where not chosen.
    """

    numbers: ClassVar[int] = 1
    identity: ClassVar[Mapping[str, float]] = {"quarters": 0}
    gain: ClassVar[float] = 1.0
    p: float = 0.75

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        return {"quarters": 1 + (3 * u[:, 0]).long()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        quarters, turned = drawn["quarters"][:, None, None, None], image.clone()
        for k in (1, 2, 3):
            turned = torch.where(quarters == k, torch.rot90(image, k, (2, 3)), turned)
        return turned

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.rotate(image, 90 * drawn["quarters"])

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return image.rotate(90 * drawn["quarters"])

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return f"turn {90 * drawn['quarters']}"

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"quarters": (0, 3)}
