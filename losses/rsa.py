"""RSA: BYOL whose two aggressive views also attract each other, less and less."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.byol import BYOL, BYOLOptions, byol_loss
from saccade.losses.functional import full_precision, require_unit_interval
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@full_precision
def rsa_loss(q1: Tensor, q2: Tensor, t1: Tensor, t2: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """L = (1-beta) mean[d(q1,t2) + d(q2,t1)] + beta mean[d(q1,sg(q2)) + d(q2,sg(q1))],  d(x, y) = 2 - 2 x.y

    q1, q2: (B, D) unit predictions of the aggressive views by the student; t1, t2: (B, D) unit projections of the weak
    views by the teacher, used without gradient; float32 at least inside. Returns L and, without gradient, its two means
    "weak" (L_w) and "aggressive" (L_a). Source: Bai et al. 2022 (arXiv 2206.01999), Eqs. 5-6; beta by
    `schedule("cosine", beta_base, offset=1)`.
    """
    if not 0 <= beta <= 1:
        raise UserError(f"RSA's beta is {beta}; it must lie in [0, 1]")
    weak = byol_loss(q1, q2, t1, t2)
    aggressive = byol_loss(q1, q2, q1, q2)  # the other view's prediction stands where the teacher's would
    return (1 - beta) * weak + beta * aggressive, {"weak": weak.detach(), "aggressive": aggressive.detach()}


@dataclass(frozen=True)
class RSAOptions(BYOLOptions):
    """BYOL's, and the weight of the aggressive pair."""

    beta: float = 0.4  # near the first step, by a cosine to 0 at the last
    beta_schedule: str = "cosine"  # "constant": beta throughout

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval(beta=self.beta)
        if self.beta_schedule not in ("cosine", "constant"):
            raise UserError(f"RSA's beta_schedule is {self.beta_schedule!r}; choose cosine or constant")


class RSA(BYOL):
    """The teacher sees the weak views, the student the aggressive ones, which are the same crops in other colours.

    Both schedules count the optimizer step from 1, as the original's counter does.
    """

    options: RSAOptions
    student_views = ("aggressive_1", "aggressive_2")
    teacher_views = ("weak_1", "weak_2")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = self._schedule("cosine", self.options.teacher_momentum, final=1.0, offset=1)
        falls = {"offset": 1} if self.options.beta_schedule == "cosine" else {}
        self._beta_at = self._schedule(self.options.beta_schedule, self.options.beta, **falls)
        self.beta = self._beta_at(0)

    def begin_step(self, step: int) -> None:
        self.beta = self._beta_at(step)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        loss, parts = rsa_loss(*self._unit(outputs), self.beta)
        return {"loss": loss, **parts, "beta": loss.new_full((), self.beta)}
