"""CACR on top of MoCo v2: K+1 views, negatives from a queue and from the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.functional import (
    attraction_weights,
    drop_diagonal,
    drop_own,
    full_precision,
    normalise,
    repulsion_weights,
    require_positive,
    require_unit_interval,
    squared_distance,
)
from saccade.losses.objective import QueueObjective
from saccade.models.gather import all_gather
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@full_precision
def cacr_queue_loss(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    queue: Tensor,
    t_pos: float = 1.0,
    t_neg: float = 2.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    intra_batch: bool = True,
    gather: bool = False,
    detach_weights: bool = True,
    queue_cache_quirk: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = mean_x [ alpha mean_i sum_v w c  -  beta mean_i sum_j u s ],  w = softmax(+t_pos c), u = softmax(-t_neg s)

    queries: V >= 2 views' (N, D) unit rows of the student, with gradient; keys: the same views' unit rows of the
    teacher, without; queue: (D, Kq) unit columns, not yet holding `keys` (enqueue the last view's keys after backward).
    c = |q_x - k_v|^2, v != x; s = 2 - 2 q_x.Q and, with `intra_batch`, |q_x[i] - q_x[j]|^2, j != i, of this process, or
    with `gather` of all, with gradient.
    Weights are detached but for the intra-batch part of u, as in the original; `detach_weights=False` detaches none.
    `queue_cache_quirk`: every view uses view 0's queue distances (a defect of the original, for comparison). float32 at
    least inside. Returns L and, without gradient, "attraction", "repulsion", "effective_negatives": mean 1 / sum_j u^2.
    Source: Zheng et al. 2023 (arXiv 2105.03746), JegZheng/CACR-SSL imagenet (MoCo v2).
    """
    q, k = torch.stack(tuple(queries)), torch.stack(tuple(keys)).detach()  # V x N x D
    if q.shape != k.shape or len(q) < 2:
        raise UserError(
            f"CACR needs the same 2 or more views as queries and keys, not {tuple(q.shape)} and {tuple(k.shape)}"
        )
    positives = drop_diagonal(squared_distance(q.transpose(0, 1), k.transpose(0, 1)))  # N x V x V-1
    w = attraction_weights(positives, t_pos, detach=detach_weights)
    attraction = alpha * (w * positives).sum(-1).mean()

    to_queue = 2 - 2 * (q[:1].expand_as(q) if queue_cache_quirk else q) @ queue.detach()  # V x N x Kq
    blocks, weighing = [to_queue], [to_queue.detach() if detach_weights else to_queue]
    if intra_batch:
        to_batch = (
            _to_all(q) if gather else drop_diagonal(squared_distance(q, q))
        )  # V x N x N-1, over all ranks if gathered
        blocks.append(to_batch)
        weighing.append(to_batch)
    u = repulsion_weights(torch.cat(weighing, -1), t_neg, detach=False)
    repulsion = -beta * (u * torch.cat(blocks, -1)).sum(-1).mean()
    effective = (1 / u.detach().square().sum(-1)).mean()
    parts = {"attraction": attraction.detach(), "repulsion": repulsion.detach(), "effective_negatives": effective}
    return attraction + repulsion, parts


def _to_all(q: Tensor) -> Tensor:
    """Squared distances to the other samples of the same view on all ranks: (V, N, D) -> (V, N, M-1)."""
    candidates = all_gather(q.transpose(0, 1).contiguous()).transpose(0, 1)  # V x M x D
    return drop_own(squared_distance(q, candidates))


def block_size(intra_batch: str) -> int | None:
    """32 of "block-32"; None of "none" and "batch"."""
    if intra_batch in ("none", "batch"):
        return None
    name, _, size = intra_batch.partition("-")
    if name != "block" or not size.isdecimal() or int(size) < 2:
        raise UserError(f"intra_batch={intra_batch} is unknown; use none, batch or, for groups of images, block-32.")
    return int(size)


@dataclass(frozen=True)
class CACRQueueOptions:
    """Hyper-parameters of `cacr_queue_loss` and of its MoCo v2; K is the number of the recipe's views less one."""

    t_pos: float = 1.0
    t_neg: float = 2.0
    alpha: float = 1.0
    beta: float = 1.0
    intra_batch: str = "batch"  # negatives beside the queue: none, batch, block-32 (i mod n of as many images)
    detach_weights: bool = True
    queue_cache_quirk: bool = False
    teacher_momentum: float = 0.999  # constant
    queue_size: int = 65536
    projector_hidden: tuple[int, ...] = (2048,)  # the width of the features
    projector_dim: int = 128

    def __post_init__(self) -> None:
        require_positive(t_pos=self.t_pos, t_neg=self.t_neg)
        require_unit_interval(teacher_momentum=self.teacher_momentum)
        block_size(self.intra_batch)


class CACRQueue(QueueObjective[CACRQueueOptions]):
    """All K+1 views through student and teacher (shuffle-BN); the last view's keys enter the queue after the step."""

    shuffle_teacher = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._block = block_size(self.options.intra_batch)
        self.per_image = self.options.intra_batch == "none"

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(views) < 2:
            raise UserError(
                f"cacr-queue compares an image's views with each other and needs 2 or more, not {len(views)}."
            )
        return views, views

    def projector(self) -> nn.Module:
        return mlp(self.features, self.options.projector_hidden, self.options.projector_dim, hidden_norm=False)

    def momentum(self, step: int) -> float:
        return self.options.teacher_momentum

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        o = self.options
        queries = torch.stack([normalise(outputs.student[name].projection) for name in self.student_views])
        keys = torch.stack([normalise(outputs.teacher[name].projection) for name in self.teacher_views])
        self.remember(keys[-1])
        n = queries.shape[1]
        if n % (self._block or n):
            raise UserError(
                f"intra_batch={o.intra_batch} does not divide the {n} images of a process's forward pass; change it or "
                "give --set options.intra_batch=batch."
            )
        groups = n // (self._block or n)  # image i of the global batch in group i mod groups, as its batch norm has it
        blocks = ((queries[:, i::groups], keys[:, i::groups]) for i in range(groups))
        results = [
            cacr_queue_loss(
                q,
                k,
                self.queue.columns,
                o.t_pos,
                o.t_neg,
                o.alpha,
                o.beta,
                intra_batch=o.intra_batch != "none",
                gather=o.intra_batch == "batch",
                detach_weights=o.detach_weights,
                queue_cache_quirk=o.queue_cache_quirk,
            )
            for q, k in blocks
        ]
        parts = {name: torch.stack([found[name] for _, found in results]).mean() for name in results[0][1]}
        return {"loss": torch.stack([loss for loss, _ in results]).mean(), **parts}
