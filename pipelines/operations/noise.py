"""Noise: Gaussian, every pixel and channel for itself. What is drawn is a seed; the noise is a function of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation
from saccade.pipelines.stream import mix64, uniform


@dataclass(frozen=True)
class Noise(Operation):
    """x + sigma n cut to [0, 1], n standard normal, sigma uniform in `sigma`: torchvision's GaussianNoise.

    Draws "sigma", (N,) float32, 0 where not chosen, and "seed", (N,) int64: no executor draws, and all make one noise.
    """

    numbers: ClassVar[int] = 2
    identity: ClassVar[Mapping[str, float]] = {"sigma": 0.0}
    gain: ClassVar[float] = 1.0
    p: float = 0.5
    sigma: tuple[float, float] = (0.0, 0.05)

    def fault(self, size: int) -> str:
        return "" if 0 <= self.sigma[0] <= self.sigma[1] else f"sigma = {self.sigma}; give two rising numbers from 0."

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        low, high = self.sigma
        return {"sigma": (low + (high - low) * u[:, 0]).float(), "seed": (u[:, 1] * 2**53).long()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        noise = normal(drawn["seed"], image[0].numel() if len(image) else 0).view(image.shape)
        return (image + drawn["sigma"][:, None, None, None] * noise.to(image.dtype)).clamp(0, 1)

    def caption(self, drawn: Mapping[str, Any]) -> str:
        return f"noise {drawn['sigma']:.3f}"

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"sigma": (0.0, self.sigma[1])}


def normal(seed: Tensor, count: int) -> Tensor:
    """(N, count) float32 standard normal numbers of each seed: Box and Muller's transform of its SplitMix64 stream."""
    u = uniform(mix64(seed)[:, None], torch.arange(count + count % 2, device=seed.device)).float()
    radius = torch.sqrt(-2 * torch.log1p(-u[:, 0::2].clamp(max=1 - 2**-24)))
    angle = 2 * math.pi * u[:, 1::2]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]
