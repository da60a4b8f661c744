"""Gain: each channel brighter or darker on its own, as stains, filters and sensors are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Gain(Operation):
    """A brightness factor for each channel, uniform in [1 - amount, 1 + amount]. Draws "gain", (N, 3) float32."""

    numbers: ClassVar[int] = 3
    identity: ClassVar[Mapping[str, float]] = {"gain": 1.0}
    p: float = 0.5
    amount: float = 0.2

    def fault(self, size: int) -> str:
        return "" if 0 <= self.amount <= 1 else f"amount = {self.amount}; give a value from 0 to 1."

    def of_colour(self) -> dict[str, str]:
        return {"": "none"}

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        return {"gain": (1 + self.amount * (2 * u - 1)).float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        return (image * drawn["gain"][:, :, None, None]).clamp(0, 1)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return torch.cat([F.adjust_brightness(image[c : c + 1], drawn["gain"][c]) for c in range(3)])

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return "gain " + " ".join(f"{factor:.2f}" for factor in drawn["gain"])
