"""ReSA: a Sinkhorn assignment between a batch's samples, made from encodings, is the target of their embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.functional import (
    full_precision,
    normalise,
    require_at_least_zero,
    require_positive,
    require_unit_interval,
    sinkhorn,
    soft_cross_entropy,
)
from saccade.losses.objective import Objective
from saccade.models.gather import all_gather, all_gather_no_grad, own_places
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams

FORMS = ("symmetric", "row")
ASSIGNED_BY = ("encodings", "embeddings", "momentum")


@full_precision
def resa_assignment(online: Tensor, momentum: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """A = Sinkhorn(h h'^T / eps): this rank's (n, N) rows, each summing to 1, N = n * world size; no gradient. With 0
    iterations softmax_j(h h'^T / eps).

    online, momentum: (n, d) unit encodings (before the projector) of the weak view by student and teacher.
    """
    scores = online.detach() @ all_gather_no_grad(momentum).t()
    return sinkhorn(scores, epsilon, iterations) if iterations else (scores / epsilon).softmax(1)


@full_precision
def resa_loss(
    online: Sequence[Tensor],
    momentum: Sequence[Tensor],
    assignment: Tensor,
    temperature: float = 0.4,
    form: str = "symmetric",
) -> Tensor:
    """L = mean over q != v of CE(A, z_q z'_v^T / T); "symmetric" averages it with CE(A^T, z'_v z_q^T / T)

    online: V >= 2 views' (n, D) unit embeddings with gradient, the weak view first; momentum: the (n, D) unit
    embeddings of views 0 and 1, without; assignment: (n, N) of `resa_assignment`, the same for every term; float32 at
    least inside. CE is the mean over this rank's n rows, so DDP's average is the one-process loss and gradient. Source:
    Weng et al. 2025 (arXiv 2501.18452); "symmetric" is the paper and winci-ai/resa's first release (its published
    numbers), "row" its current code.
    """
    require_positive(temperature=temperature)
    if form not in FORMS:
        raise UserError(f"ReSA's form is {form!r}; choose one of {', '.join(FORMS)}")
    if len(online) < 2 or len(momentum) != 2:
        raise UserError(
            f"ReSA needs 2 or more online views and 2 momentum views, not {len(online)} and {len(momentum)}"
        )
    keys = [all_gather_no_grad(z) for z in momentum]  # N x D each
    pairs = [(q, v) for q in range(len(online)) for v in (0, 1) if q != v]
    rows = _mean(soft_cross_entropy(online[q] @ keys[v].t() / temperature, assignment) for q, v in pairs)
    if form == "row":
        return rows
    own = own_places(len(assignment), assignment.device)
    transposed = all_gather_no_grad(assignment)[:, own].t()  # A^T for this rank's n momentum samples, n x N
    queries = [all_gather(z) for z in online]
    columns = _mean(
        soft_cross_entropy(momentum[v].detach() @ queries[q].t() / temperature, transposed) for q, v in pairs
    )
    return (rows + columns) / 2


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(tuple(losses)).mean()


@dataclass(frozen=True)
class ReSAOptions:
    """Hyper-parameters of ReSA, the same on every data set but for the predictor."""

    temperature: float = 0.4
    epsilon: float = 0.05  # of the Sinkhorn assignment
    iterations: int = 3  # 0: a softmax of each row instead of Sinkhorn
    form: str = "symmetric"  # the paper's; "row" is the newest code's
    teacher_momentum: float = 0.996  # at the first step, by a cosine to 1
    projector_hidden: int = 2048  # twice
    projector_dim: int = 512
    predictor_hidden: int | None = None  # None: no predictor
    transformer_heads: bool = False  # GELU, no batch norm, LayerNorm before the predictor, Xavier
    assigned_by: str = "encodings"  # of the weak view; or its "embeddings", or "momentum": the teacher's two views

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature, epsilon=self.epsilon)
        require_at_least_zero(iterations=self.iterations)
        if self.assigned_by not in ASSIGNED_BY:
            raise UserError(f"ReSA's assigned_by is {self.assigned_by!r}; choose one of {', '.join(ASSIGNED_BY)}")
        require_unit_interval(teacher_momentum=self.teacher_momentum)
        if self.form not in FORMS:
            raise UserError(f"ReSA's form is {self.form!r}; choose one of {', '.join(FORMS)}")


class ReSA(Objective[ReSAOptions]):
    """The recipe's first view is the weak one; the student sees all views, the teacher the first two."""

    evaluate_teacher = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = self._schedule("cosine", self.options.teacher_momentum, final=1.0)

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(views) < 2:
            raise UserError(
                f"resa needs a weak view and one or more strong ones; the recipe has only {', '.join(views) or 'none'}."
            )
        return views, views[:2]

    def projector(self) -> nn.Module:
        hidden, dim = [self.options.projector_hidden] * 2, self.options.projector_dim
        if self.options.transformer_heads:
            return _xavier(mlp(self.features, hidden, dim, hidden_norm=False, activation=nn.GELU))
        return mlp(self.features, hidden, dim, out_norm="plain")

    def predictor(self) -> nn.Module | None:
        hidden, dim = self.options.predictor_hidden, self.options.projector_dim
        if hidden is None:
            return None
        if self.options.transformer_heads:
            head = mlp(dim, [hidden], dim, hidden_norm=False, activation=nn.GELU)
            return _xavier(nn.Sequential(nn.LayerNorm(dim), head))
        return mlp(dim, [hidden], dim)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        o = self.options
        assignment = resa_assignment(*self._assigned(outputs), o.epsilon, o.iterations)
        online = [normalise(outputs.student[view].embedding) for view in self.student_views]
        momentum = [normalise(outputs.teacher[view].projection) for view in self.teacher_views]
        own = own_places(len(assignment), assignment.device)
        return {
            "loss": resa_loss(online, momentum, assignment, o.temperature, o.form),
            "self_assigned": assignment.gather(1, own[:, None]).mean(),
        }  # 1: each sample to itself alone

    def _assigned(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """What the assignment compares, each (n, D) of unit rows: the paper's choice, or an ablation's."""
        weak, other = self.teacher_views
        student, teacher = outputs.student[weak], outputs.teacher[weak]
        if self.options.assigned_by == "embeddings":
            return normalise(student.embedding), normalise(teacher.projection)
        first = student if self.options.assigned_by == "encodings" else outputs.teacher[other]
        return normalise(first.features), normalise(teacher.features)


def _xavier(head: nn.Module) -> nn.Module:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return head
