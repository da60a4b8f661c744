"""CACR at small scale: far positives attract more, near negatives repel more, among K+1 views of one network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.functional import (
    attraction_weights,
    drop_diagonal,
    full_precision,
    normalise,
    repulsion_weights,
    require_positive,
    squared_distance,
)
from saccade.losses.objective import Objective
from saccade.models.gather import all_gather
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams

ABLATIONS = ("full", "without_w1", "without_w2", "none")

REPULSIONS = ("mean", "rbf")


@full_precision
def cacr_loss(
    views: Sequence[Tensor],
    t_pos: float = 1.0,
    t_neg: float = 2.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    ablation: Literal["full", "without_w1", "without_w2", "none"] = "full",
    repulsion: Literal["mean", "rbf"] = "mean",
    rbf_t: float = 2.0,
    tau_plus: float | None = None,
    detach_weights: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = alpha mean_{x,i} sum_v w c+  -  beta mean_{x<y,i} sum_j u c-,  w = softmax(+t_pos c+), u = softmax(-t_neg c-)

    views: V = K+1 >= 2 of (N, D) unit rows, with gradient, also through w and u unless `detach_weights`. c+[x,i,v] =
    |Z_x[i] - Z_v[i]|^2, v != x; c-[x,y,i,j] = |Z_x[i] - Z_y[j]|^2, j != i, for each pair x < y once. float32 at least
    inside; local to the process, no gather (the original is single process). `ablation` replaces w (without_w1), u
    (without_w2) or both (none) by uniform weights. `repulsion` "rbf": per pair, beta log mean_i sum_j u exp(-rbf_t c-).
    `tau_plus`: debiased, (r_i - tau_plus c+[x,i,y]) / (1 - tau_plus) in place of r_i = -beta sum_j u c-. Returns L and,
    without gradient, "attraction", "repulsion" (L is their sum) and "effective_negatives", mean 1 / sum_j u^2. Source:
    Zheng et al. 2023 (arXiv 2105.03746), JegZheng/CACR-SSL small scale.
    """
    z = torch.stack(tuple(views))  # V x N x D
    _check(z, ablation, repulsion, tau_plus)
    n_views, n, _ = z.shape
    distances = squared_distance(z.flatten(0, 1), z.flatten(0, 1)).view(n_views, n, n_views, n)

    positives = drop_diagonal(distances.diagonal(dim1=1, dim2=3).permute(2, 0, 1))  # N x V x V-1
    w = attraction_weights(positives, 0.0 if ablation in ("without_w1", "none") else t_pos, detach=detach_weights)
    attraction = alpha * (w * positives).sum(-1).mean()

    first, second = torch.triu_indices(n_views, n_views, 1, device=z.device)
    pairs = distances[first, :, second, :]  # P x N x N
    negatives = drop_diagonal(pairs)  # P x N x N-1
    u = repulsion_weights(negatives, 0.0 if ablation in ("without_w2", "none") else t_neg, detach=detach_weights)
    if repulsion == "rbf":
        repelled = beta * (u * torch.exp(-rbf_t * negatives)).sum(-1).mean(-1).log().mean()
    else:
        per_query = -beta * (u * negatives).sum(-1)
        if tau_plus is not None:
            per_query = (per_query - tau_plus * pairs.diagonal(dim1=1, dim2=2)) / (1 - tau_plus)
        repelled = per_query.mean()
    effective = 1 / u.detach().square().sum(-1)
    parts = {"attraction": attraction.detach(), "repulsion": repelled.detach(), "effective_negatives": effective.mean()}
    return attraction + repelled, parts


def _check(z: Tensor, ablation: str, repulsion: str, tau_plus: float | None) -> None:
    if ablation not in ABLATIONS:
        raise UserError(f"CACR's ablation is {ablation!r}; choose one of {', '.join(ABLATIONS)}")
    if repulsion not in REPULSIONS:
        raise UserError(f"CACR's repulsion is {repulsion!r}; choose one of {', '.join(REPULSIONS)}")
    if tau_plus is not None and (repulsion == "rbf" or not 0 <= tau_plus < 1):
        raise UserError(f"CACR's tau_plus is {tau_plus}; it must lie in [0, 1) and goes with repulsion 'mean' only")
    if len(z) < 2 or z.shape[1] < 2:
        raise UserError(f"CACR needs 2 or more views of 2 or more samples, not {len(z)} of {z.shape[1]}")


@dataclass(frozen=True)
class CACROptions:
    """Hyper-parameters of `cacr_loss` and of the projector; K is the number of the recipe's views less one."""

    t_pos: float = 1.0
    t_neg: float = 2.0
    alpha: float = 1.0
    beta: float = 1.0
    ablation: str = "full"
    repulsion: str = "mean"
    rbf_t: float = 2.0
    tau_plus: float | None = None  # debiased with this class prior; None: not
    detach_weights: bool = False
    gather: bool = True  # compare with the images of all processes; False: of this one
    projector_hidden: tuple[int, ...] = ()  # () is the SmallAlexNet's last layer; (512,) for a ResNet
    projector_dim: int = 128

    def __post_init__(self) -> None:
        require_positive(t_pos=self.t_pos, t_neg=self.t_neg, rbf_t=self.rbf_t)


class CACR(Objective[CACROptions]):
    """Every view through one network, each on its own; L = attraction + repulsion among all of them, no teacher."""

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(views) < 2:
            raise UserError(f"cacr compares an image's views with each other and needs 2 or more, not {len(views)}.")
        return views, ()

    def projector(self) -> nn.Module:
        head = mlp(self.features, self.options.projector_hidden, self.options.projector_dim)
        if not self.options.projector_hidden:
            linear = head[0]
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        return head

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        o = self.options
        views = [normalise(outputs.student[name].projection) for name in self.student_views]
        if o.gather:
            views = [all_gather(z) for z in views]
        loss, parts = cacr_loss(
            views,
            o.t_pos,
            o.t_neg,
            o.alpha,
            o.beta,
            ablation=o.ablation,
            repulsion=o.repulsion,
            rbf_t=o.rbf_t,
            tau_plus=o.tau_plus,
            detach_weights=o.detach_weights,
        )
        return {"loss": loss, **parts}
