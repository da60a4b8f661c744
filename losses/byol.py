"""BYOL: predict the teacher's embedding of the other view."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from saccade.losses.functional import full_precision, normalise, paired_distance, require_unit_interval
from saccade.losses.objective import Objective
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@full_precision
def byol_loss(q1: Tensor, q2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """L = mean_i [ d(q1, t2) + d(q2, t1) ],  d(x, y) = 2 - 2 x.y

    q1, q2: (B, D) unit predictions of the student; t1, t2: (B, D) unit projections of the teacher, used without
    gradient; float32 at least inside. L in [0, 8]. No gather. Source: Grill et al. 2020 (arXiv 2006.07733), Eq. 2, both
    directions.
    """
    return (paired_distance(q1, t2.detach()) + paired_distance(q2, t1.detach())).mean()


@dataclass(frozen=True)
class BYOLOptions:
    """Hyper-parameters of BYOL; the widths are RSA's for small images."""

    teacher_momentum: float = 0.99  # by a cosine from here to 1
    projector_hidden: int = 1024
    projector_dim: int = 128
    predictor_hidden: int = 1024
    output_bias: bool = False  # of the last linear layer of both heads
    momentum_offset: int = 0  # the cosine's first step: 1 where a counter is incremented before it is used (RSA's code)

    def __post_init__(self) -> None:
        require_unit_interval(teacher_momentum=self.teacher_momentum)


class BYOL(Objective[BYOLOptions]):
    """Both networks see both views, each in a forward of its own."""

    student_views = teacher_views = ("view_1", "view_2")
    per_image = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = self._schedule(
            "cosine", self.options.teacher_momentum, final=1.0, offset=self.options.momentum_offset
        )

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """With weak_1, weak_2 in the recipe the teacher sees those, and the student the others (RSA's ablation)."""
        if type(self).teacher_views == BYOL.teacher_views and {"weak_1", "weak_2"} < set(views):
            self.student_views, self.teacher_views = ("aggressive_1", "aggressive_2"), ("weak_1", "weak_2")
        return super().wiring(views)

    def projector(self) -> nn.Module:
        o = self.options
        return mlp(self.features, [o.projector_hidden], o.projector_dim, out_bias=o.output_bias)

    def predictor(self) -> nn.Module:
        o = self.options
        return mlp(o.projector_dim, [o.predictor_hidden], o.projector_dim, out_bias=o.output_bias)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        return {"loss": byol_loss(*self._unit(outputs))}

    def _unit(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q1, q2, t1, t2: the student's predictions and the teacher's projections at unit length."""
        q1, q2 = (normalise(outputs.student[view].embedding) for view in self.student_views)
        t1, t2 = (normalise(outputs.teacher[view].projection) for view in self.teacher_views)
        return q1, q2, t1, t2
