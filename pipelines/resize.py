"""Crop, antialiased resize and flip as batched torch, with each sample's own box: the meaning of a view's geometry.

It is torchvision's resized_crop on float tensors; tests/pipelines hold it to that. float64 in, float64 out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_resize(
    pixels: Tensor,
    box: Tensor,
    flip: Tensor,
    size: int,
    interpolation: str = "bilinear",
    scale: Tensor | None = None,
) -> Tensor:
    """Cut `box`, resize to size x size with antialiasing, mirror where `flip`.

    pixels: (N, 3, H, W) uint8 or float; box: (N, 4) int64 top, left, height, width; flip: (N,) bool.
    scale: (N,) how many pixels of the box's image each of these stands for, in both directions; None: one.
    Returns (N, 3, size, size) float in [0, 1]. The two 1-d filters are (size x H) and (size x W) matrices, so the
    work is two batched matrix products: meant for small sources (up to about 128 px).
    """
    image = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    top, left, height, width = (box if scale is None else box.double() / scale[:, None]).unbind(1)
    rows = _filter_matrix(top, height, image.shape[2], size, interpolation).to(image.dtype)
    columns = _filter_matrix(left, width, image.shape[3], size, interpolation).to(image.dtype)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    n, channels, lines, across = image.shape
    image = torch.bmm(image.reshape(n, channels * lines, across), columns.transpose(1, 2))  # N x CH x S
    image = torch.matmul(rows[:, None], image.view(n, channels, lines, size))  # N x C x S x S
    return image.clamp(0, 1) if interpolation == "bicubic" else image


def _filter_matrix(start: Tensor, length: Tensor, source: int, size: int, interpolation: str) -> Tensor:
    """(N, size, source): row o holds the antialiased filter weights of output pixel o, zero outside the crop; a
    pixel that lies in it in part counts by that part.

    float64: in float32 the filters of a 500-pixel crop would stand 3e-5 pixels off.
    """
    position = torch.arange(source, device=start.device, dtype=torch.float64)
    scale = (length.double() / size)[:, None, None]  # source pixels per output pixel
    stretch = scale.clamp(min=1)  # antialiasing: the filter widens when the image shrinks
    centre = (torch.arange(size, device=start.device, dtype=torch.float64)[None, :, None] + 0.5) * scale
    offset = position[None, None, :] - start[:, None, None]
    weight = _KERNELS[interpolation]((offset + 0.5 - centre) / stretch)
    inside = torch.minimum(offset + 1, length[:, None, None]) - offset.clamp(min=0)
    weight = weight * inside.clamp(min=0)
    return weight / weight.sum(dim=2, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, the one PIL and torch's antialiased resize use."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
