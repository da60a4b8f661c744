"""Two numbers that show a collapsed representation before any classifier does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the std of L2-normalised features (N, D), times sqrt(D): 1 when they fill the sphere
    evenly, 0 when all images give the same vector. SimSiam (Chen and He, CVPR 2021), figure 2.

    Examples:
        >>> round(feature_std(torch.randn(1000, 64)), 1), feature_std(torch.ones(1000, 64))
        (1.0, 0.0)
    """
    unit = F.normalize(features.double(), dim=1)
    return (unit.std(0, correction=0).mean() * features.shape[1] ** 0.5).item()


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values of (N, D) features, as shares of their sum): from 1 (one direction) to D.

    Not centred, so features that are one vector and a little noise have rank 1. RankMe (Garrido et al., ICML 2023).

    Examples:
        >>> round(effective_rank(torch.eye(8))), round(effective_rank(torch.ones(8, 8)))
        (8, 1)
    """
    x = features.double()
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    singular = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    share = singular / singular.sum()
    return torch.exp(-torch.xlogy(share, share).sum()).item()
