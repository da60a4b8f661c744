"""The temperature by which logits are divided so that their softmax is as sure as it is right."""

from __future__ import annotations

from math import log10

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH, STEPS = 0.05, 20.0, 241


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Of (M, C) logits of images that were not trained on, and (M,) labels: the least negative log-likelihood.

    On a grid, 2.5 % apart, from 0.05 to 20: few images tell no more. Guo et al., ICML 2017.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0]]).repeat(10, 1)  # 88 % sure, and right 6 times of 10
        >>> 4 < best_temperature(logits, torch.tensor([0] * 6 + [1] * 4)) < 6
        True
    """
    grid = torch.logspace(log10(LOW), log10(HIGH), STEPS, dtype=torch.float64)
    losses = torch.stack([F.cross_entropy(logits.double() / t, labels) for t in grid])
    return round(float(grid[losses.argmin()]), 4)
