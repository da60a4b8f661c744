"""CACR on top of MoCo v3: in-batch keys of a momentum teacher, queries weighed by their distance to the key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.functional import (
    attraction_weights,
    full_precision,
    key_cross_entropy,
    normalise,
    paired_distance,
    require_positive,
)
from saccade.losses.moco import MoCoV3, MoCoV3Options
from saccade.models.gather import all_gather_no_grad, own_places
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams

COSTS = ("rbf", "euclidean")

REDUCTIONS = ("mean", "sum")


@full_precision
def cacr_momentum_loss(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    temperature: float = 1.0,
    *,
    cost: str = "rbf",
    reduction: str = "mean",
) -> Tensor:
    """L = mean over keys i of cacr_key_loss(the queries of every view but i, key i)

    queries: V views' (N, D) unit predictions, with gradient, the 2 global views first; keys: (N, D) unit projections of
    the teacher, without: the 2 global ones (light mode) or all V (full mode). float32 at least inside. With two views
    and cost "rbf" this is half of MoCo v3's loss. Source: Zheng et al. 2023 (arXiv 2105.03746), JegZheng/CACR-SSL
    imagenet_pretraining.
    """
    if not 1 <= len(keys) <= len(queries) or len(queries) < 2:
        raise UserError(f"CACR needs 2 or more queries and no more keys, not {len(queries)} and {len(keys)}")
    losses = [
        cacr_key_loss([q for m, q in enumerate(queries) if m != i], key, temperature, cost=cost, reduction=reduction)
        for i, key in enumerate(keys)
    ]
    return torch.stack(losses).mean()


@full_precision
def cacr_key_loss(
    queries: Sequence[Tensor],
    key: Tensor,
    temperature: float = 1.0,
    *,
    cost: str = "rbf",
    reduction: str = "mean",
) -> Tensor:
    """rbf: 2T sum_m mean_n p_mn CE(q_m[n].k/T, n); euclidean: sum_m mean_n p_mn [c_nn - sum_{j != n} r_j c_nj]

    p = softmax over the Q queries m of |q_m[n] - key[n]|^2 / T, c = 1 - q.k, r = softmax_j(-c_nj / T); p and r have no
    gradient; k are the keys of all ranks. queries: Q of (N, D) unit rows; key: (N, D) unit rows. `reduction` is that
    over n: the original's is "mean" for rbf and "sum" for euclidean, whose scale then grows with the batch per process.
    """
    require_positive(temperature=temperature)
    if cost not in COSTS:
        raise UserError(f"CACR's cost is {cost!r}; choose one of {', '.join(COSTS)}")
    if reduction not in REDUCTIONS:
        raise UserError(f"CACR's reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    q, key = torch.stack(tuple(queries)), key.detach()  # Q x N x D
    p = attraction_weights(paired_distance(q, key), 1 / temperature, detach=True, dim=0)  # Q x N
    if cost == "rbf":
        terms = 2 * temperature * p * key_cross_entropy(q, key, temperature)
    else:
        terms = p * _euclidean_cost(q, key, temperature)
    per_sample = terms.sum(0)
    return per_sample.mean() if reduction == "mean" else per_sample.sum()


def _euclidean_cost(q: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Attraction of the own key and repulsion of the others: (Q, N, D), (N, D) -> (Q, N)."""
    costs = 1 - q @ all_gather_no_grad(key).t()  # Q x N x M
    own = own_places(len(key), key.device)[None, :, None].expand(len(q), -1, 1)
    return costs.gather(2, own).squeeze(2) - (_negative_weights(costs, own, temperature) * costs).sum(2)


def _negative_weights(costs: Tensor, own: Tensor, temperature: float) -> Tensor:
    """r = softmax_j(-c_nj / T) over the other images' keys, 0 at the own: (Q, N, M), (Q, N, 1) -> (Q, N, M)."""
    return F.softmax((-costs.detach() / temperature).scatter(2, own, -math.inf), dim=2)


@torch.no_grad()
@full_precision
def effective_negatives(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Mean over n of 1 / sum_j r_nj^2, from 1 to M - 1: how many other keys push a query. Both (N, D) unit rows.

    r are the weights of the Euclidean cost, and those of the gradient of the RBF cost among the negatives.
    """
    own = own_places(len(key), key.device)[None, :, None]
    r = _negative_weights(1 - query[None] @ all_gather_no_grad(key).t(), own, temperature)
    return (1 / r.square().sum(2)).mean()


@dataclass(frozen=True)
class CACRMomentumOptions(MoCoV3Options):
    """MoCo v3's, and CACR's cost; local crops are the recipe's views beyond the first two."""

    cost: str = "rbf"  # or euclidean
    reduction: str = "mean"  # over the images of a process; the original's Euclidean cost sums
    full_mode: bool = False  # the local crops through the teacher too


class CACRMomentum(MoCoV3):
    """All views through the student, the global ones (full mode: all) through the teacher; keys are anchors."""

    options: CACRMomentumOptions

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(views) < 2:
            raise UserError(f"cacr-momentum needs 2 global views or more, not {len(views)}.")
        return views, views if self.options.full_mode else views[:2]

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        o = self.options
        queries = [normalise(outputs.student[name].embedding) for name in self.student_views]
        keys = [normalise(outputs.teacher[name].projection) for name in self.teacher_views]
        return {
            "loss": cacr_momentum_loss(queries, keys, o.temperature, cost=o.cost, reduction=o.reduction),
            "positive_cosine": (queries[0].detach() * keys[1]).sum(1).mean(),
            "effective_negatives": effective_negatives(queries[0], keys[1], o.temperature),
        }
