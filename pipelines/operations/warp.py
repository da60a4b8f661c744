"""Affine warps of a view about its centre, each sample with its own matrix; outside of the image lies `fill`."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor


def warp(image: Tensor, matrix: Tensor, fill: float = 0.0, mode: str = "bilinear") -> Tensor:
    """image (N, 3, H, W); matrix (N, 2, 3): from a pixel of the outcome, counted from the centre with x to the right
    and y down, to the pixel of the image that is shown there. mode: bilinear or nearest."""
    height, width = image.shape[2:]
    scale = torch.tensor([width / 2, height / 2], dtype=image.dtype, device=image.device)
    if mode == "nearest":  # on an edge between two pixels: the later one, as PIL's, whatever float32 rounds to
        matrix = matrix + 1e-4 * torch.eye(3, device=image.device, dtype=matrix.dtype)[2]
    matrix = matrix.to(image.dtype)
    linear = matrix[:, :, :2] * scale[None, None, :] / scale[None, :, None]
    theta = torch.cat([linear, matrix[:, :, 2:] / scale[None, :, None]], dim=2)
    grid = nn.affine_grid(theta, list(image.shape), align_corners=False)
    return nn.grid_sample(image - fill, grid, mode=mode, padding_mode="zeros", align_corners=False) + fill


def turning(degrees: Tensor) -> Tensor:
    """(N, 2, 3) matrices that turn the image counter-clockwise."""
    angle = torch.deg2rad(degrees.double())
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
