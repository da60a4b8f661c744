"""Gaussian blur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from saccade.pipelines.operations.operation import Columns, Operation


@dataclass(frozen=True)
class Blur(Operation):
    """Gaussian blur with reflected borders; sigma in pixels of the view, uniform in `sigma`; the kernel is cut at
    `kernel_size` (odd) taps.

    Draws "sigma", (N,) float32, 0 where not chosen.
    """

    position: ClassVar[int | None] = 8
    numbers: ClassVar[int] = 1
    identity: ClassVar[Mapping[str, float]] = {"sigma": 0.0}
    gain: ClassVar[float] = 1.0
    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel_size: int = 13  # 3 sigma at sigma 2; S-TEC's own rule is stec_blur(size)

    def fault(self, size: int) -> str:
        (low, high), taps = self.sigma, self.kernel_size
        if 0.0 < low <= high and taps % 2 and 0 < taps // 2 < size:
            return ""
        return (
            f"sigma {self.sigma} with {taps} taps does not fit a {size}-pixel view; sigma must be positive, the taps "
            "odd and under twice the size."
        )

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        low, high = self.sigma
        return {"sigma": (low + (high - low) * u[:, 0]).float()}

    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        """Both directions are products with a banded (S x S) matrix that already holds the reflection."""
        height, width = image.shape[2:]
        sigma = drawn["sigma"].to(image.dtype)
        rows = _blur_matrix(sigma, self.kernel_size, height)
        columns = rows if width == height else _blur_matrix(sigma, self.kernel_size, width)
        image = torch.matmul(image, columns.transpose(1, 2)[:, None])
        return torch.matmul(rows[:, None], image)

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor:
        return F.gaussian_blur(image, [self.kernel_size] * 2, [drawn["sigma"]] * 2)

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(drawn["sigma"]))

    def pil_differs(self) -> tuple[float, float, str]:
        return 2.5, 120.0, "its Gaussian blur is three box filters and has no kernel size"

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {"sigma": (0.0, self.sigma[1])}

    def cases(self, size: int) -> dict[str, Operation]:
        return {self.name: replace(self, p=1.0, kernel_size=2 * max(1, size // 20) + 1)}


def stec_blur(size: int) -> Blur:
    """S-TEC's blur for a view of `size` pixels: kernel side int(size/10) made odd (>= 3), sigma scaled from 224."""
    taps = int(0.1 * size)
    return Blur(p=0.5, sigma=(0.1 * size / 224, 2.0 * size / 224), kernel_size=max(3, taps + 1 - taps % 2))


def _blur_matrix(sigma: Tensor, kernel_size: int, size: int) -> Tensor:
    radius = kernel_size // 2
    tap = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]) ** 2)  # sigma 0 becomes the identity
    weight = weight / weight.sum(dim=1, keepdim=True)
    source = torch.arange(size, device=sigma.device)[:, None] + tap.long()
    source = source.abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)  # reflect without repeating the border
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device, dtype=sigma.dtype)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weight[:, None, :].expand(-1, size, -1))
