"""MoCo v2 (queue) and v3 (in-batch keys): InfoNCE between a student and its momentum teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.losses.functional import (
    full_precision,
    key_cross_entropy,
    normalise,
    require_positive,
    require_unit_interval,
)
from saccade.losses.objective import Objective, QueueObjective
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@full_precision
def moco_v2_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """L = mean_i -log( exp(q_i.k_i/T) / (exp(q_i.k_i/T) + sum_m exp(q_i.Q_m/T)) )

    queries: (N, D) unit rows with gradient; keys: (N, D) unit rows of the other view, without; queue: (D, K) unit
    columns, not yet holding `keys`; float32 at least inside. Source: He et al. 2020 (arXiv 1911.05722), Eq. 1; v2:
    arXiv 2003.04297.
    """
    require_positive(temperature=temperature)
    positive = (queries * keys.detach()).sum(1) / temperature
    negatives = torch.logsumexp(queries @ queue.detach() / temperature, dim=1)
    return (torch.logaddexp(positive, negatives) - positive).mean()


@full_precision
def moco_v3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float = 1.0) -> Tensor:
    """L = 2T mean_n [ CE(q1_n . k2 / T, n) + CE(q2_n . k1 / T, n) ] over the keys of all ranks

    q1, q2: (N, D) unit predictions of the student with gradient; k1, k2: (N, D) unit projections of the teacher,
    gathered without gradient; float32 at least inside. Source: Chen et al. 2021 (arXiv 2104.02057), Alg. 1.
    """
    require_positive(temperature=temperature)
    both = key_cross_entropy(q1, k2, temperature) + key_cross_entropy(q2, k1, temperature)
    return 2 * temperature * both.mean()


V2, V3 = "facebookresearch/moco", "facebookresearch/moco-v3"


@dataclass(frozen=True)
class MoCoV2Options:
    """Hyper-parameters of MoCo v2."""

    temperature: float = 0.2
    teacher_momentum: float = 0.999  # constant
    queue_size: int = 65536
    projector_hidden: tuple[int, ...] = (2048,)  # the width of the features
    projector_dim: int = 128

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_unit_interval(teacher_momentum=self.teacher_momentum)


class MoCoV2(QueueObjective[MoCoV2Options]):
    """view_1 through the student, view_2 through the teacher (shuffle-BN); its keys enter the queue after the step."""

    student_views = ("view_1",)
    teacher_views = ("view_2",)
    shuffle_teacher = per_image = True

    def projector(self) -> nn.Module:
        return mlp(self.features, self.options.projector_hidden, self.options.projector_dim, hidden_norm=False)

    def momentum(self, step: int) -> float:
        return self.options.teacher_momentum

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        keys = normalise(outputs.teacher["view_2"].projection)
        queries = normalise(outputs.student["view_1"].projection)
        loss = moco_v2_loss(queries, keys, self.queue.columns, self.options.temperature)
        self.remember(keys)
        return {"loss": loss, "positive_cosine": (queries.detach() * keys).sum(1).mean()}


@dataclass(frozen=True)
class MoCoV3Options:
    """Hyper-parameters of MoCo v3; the heads are those of its ResNet-50."""

    temperature: float = 1.0
    teacher_momentum: float = 0.996  # at the start; cosine to 1
    projector_hidden: tuple[int, ...] = (4096,)
    projector_dim: int = 256
    predictor_hidden: tuple[int, ...] = (4096,)
    predictor_norm: bool = False  # BatchNorm without weights after the predictor

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_unit_interval(teacher_momentum=self.teacher_momentum)


class MoCoV3(Objective[MoCoV3Options]):
    """Both views through student (with predictor) and teacher, each query against all keys of the other view."""

    student_views = ("view_1", "view_2")
    teacher_views = ("view_1", "view_2")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = self._schedule("cosine", self.options.teacher_momentum, final=1.0)

    def projector(self) -> nn.Module:
        return mlp(
            self.features,
            self.options.projector_hidden,
            self.options.projector_dim,
            hidden_bias=False,
            out_bias=False,
            out_norm="plain",
        )

    def predictor(self) -> nn.Module:
        o = self.options
        return mlp(
            o.projector_dim,
            o.predictor_hidden,
            o.projector_dim,
            hidden_bias=False,
            out_bias=False,
            out_norm="plain" if o.predictor_norm else "none",
        )

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        q1, q2 = (normalise(outputs.student[name].embedding) for name in self.student_views)
        k1, k2 = (normalise(outputs.teacher[name].projection) for name in self.teacher_views)
        return {
            "loss": moco_v3_loss(q1, q2, k1, k2, self.options.temperature),
            "positive_cosine": (q1.detach() * k2).sum(1).mean(),
        }
