"""ReSSL: the student's similarities to past keys follow the teacher's sharper ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.functional import (
    full_precision,
    normalise,
    require_at_least_zero,
    require_positive,
    require_unit_interval,
    soft_cross_entropy,
)
from saccade.losses.objective import QueueObjective
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@full_precision
def ressl_loss(
    student: Sequence[Tensor], teacher: Tensor, queue: Tensor, t_student: float = 0.1, t_teacher: float = 0.04
) -> Tensor:
    """L = mean over crops c of -(1/B) sum_i sum_j softmax_j(k_i.Q_j / t_teacher) log_softmax_j(q_ci.Q_j / t_student)

    student: one (B, D) of unit rows per crop, with gradient; teacher: (B, D) unit rows of the weak view, without;
    queue: (D, K) unit columns that do not yet hold the teacher's keys. Backward reads the queue: enqueue after it, and
    no copy is needed. t_teacher 0 is its limit, one-hot targets. float32 at least inside. No positive, mask, centre or
    T^2. Source: Zheng et al. 2021 (arXiv 2107.09282), KyleZheng1997/ReSSL.
    """
    require_positive(t_student=t_student)
    require_at_least_zero(t_teacher=t_teacher)
    queue = queue.detach()
    if t_teacher:
        targets = F.softmax((teacher.detach() / t_teacher) @ queue, dim=1)  # divided before: one (B, K) less
    else:  # the limit: all of it on the nearest key
        nearest = (teacher.detach() @ queue).argmax(1, keepdim=True)
        targets = torch.zeros(len(teacher), queue.shape[1], device=queue.device, dtype=queue.dtype)
        targets = targets.scatter_(1, nearest, 1.0)
    return torch.stack([soft_cross_entropy((q / t_student) @ queue, targets) for q in student]).mean()


@dataclass(frozen=True)
class ReSSLOptions:
    """Hyper-parameters of ReSSL; the defaults are CIFAR's."""

    t_student: float = 0.1
    t_teacher: float = 0.04
    teacher_momentum: float = 0.99  # constant
    projector_hidden: int = 2048
    projector_dim: int = 128
    queue_size: int = 4096

    def __post_init__(self) -> None:
        require_positive(t_student=self.t_student)
        require_at_least_zero(t_teacher=self.t_teacher)
        require_unit_interval(teacher_momentum=self.teacher_momentum)


class ReSSL(QueueObjective[ReSSLOptions]):
    """The view "weak" goes to the teacher, shuffled over all processes; every other view is a crop for the student."""

    shuffle_teacher = per_image = True

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        crops = tuple(name for name in views if name != "weak")
        if len(crops) == len(views) or not crops:
            raise UserError(f"ressl needs the view weak and one or more others; the recipe has {', '.join(views)}.")
        return crops, ("weak",)

    def projector(self) -> nn.Module:
        return mlp(self.features, [self.options.projector_hidden], self.options.projector_dim, hidden_norm=False)

    def momentum(self, step: int) -> float:
        return self.options.teacher_momentum

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        crops = [normalise(outputs.student[view].projection) for view in self.student_views]
        keys = normalise(outputs.teacher["weak"].projection)
        self.remember(keys)
        return {"loss": ressl_loss(crops, keys, self.queue.columns, self.options.t_student, self.options.t_teacher)}
