"""RSA: BYOL whose two aggressive views also attract each other, less and less."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.byol import BYOL, BYOLOptions, byol_loss, byol_recipe
from saccade.losses.functional import full_precision, require_unit_interval
from saccade.losses.objective import Method
from saccade.losses.recipe import (
    OptimizerSpec,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    derive_recipe,
    embedded_recipe,
)
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.views import Crop, View, Views

CODE = "tmllab/2022_NeurIPS_RSA @f4fa807"


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

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval(beta=self.beta)


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
        self._beta_at = self._schedule("cosine", self.options.beta, offset=1)
        self.beta = self._beta_at(0)

    def begin_step(self, step: int) -> None:
        self.beta = self._beta_at(step)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        loss, parts = rsa_loss(*self._unit(outputs), self.beta)
        return {"loss": loss, **parts, "beta": loss.new_full((), self.beta)}


def _views(base: Views, size: int) -> Views:
    weak = [View(f"weak_{i}", size, Crop((0.2, 1.0))) for i in (1, 2)]
    operations = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5))
    aggressive = [
        replace(view, name=f"aggressive_{i}", parent=view.name, operations=operations) for i, view in enumerate(weak, 1)
    ]
    return replace(base, views=(*weak, *aggressive))


def _from_byol(data: str, beta: float, result: str) -> TrainingRecipe[RSAOptions]:
    """RSA's authors compare with a BYOL of their own, from which theirs differs in the views and the loss alone."""
    base = byol_recipe(data)
    sources = dict.fromkeys(("views", "optimizer", "options"), CODE)
    return derive_recipe(
        base,
        "rsa",
        RSAOptions(**{**asdict(base.options), "teacher_momentum": 0.99}, beta=beta),
        views=_views(base.views, base.image_size),
        sources={
            **sources,
            "epochs": f"arXiv 2206.01999: {result}",
            "options.beta": "arXiv 2206.01999; the code's default is 0.4 on every data set",
        },
        proposals={},
    )


def _imagenet(variant: str, epochs: int, lr: float, result: str) -> TrainingRecipe[RSAOptions]:
    base = _from_byol("imagenet", 0.4, result)
    return replace(
        base,
        variant=variant,
        epochs=epochs,
        batch_size=2048,
        precision="fp16",
        protocol="rsa-imagenet",
        optimizer=OptimizerSpec("lars", lr, 256, weight_decay=1e-6, rule="ndim", lars_norm="decayed"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 10}),
        batch_norm="sync",
        sources={
            **base.sources,
            "optimizer.lr": "README (200 epochs), arXiv 2206.01999 (100 epochs)",
            "precision": "arXiv 2206.01999; the README's command leaves it out",
        },
    )


_DRIFT = "; printed after a probe in train mode: eval.py --batch-norm-drift"
RECIPES = {
    r.name: r
    for r in (
        _from_byol("cifar10", 0.3, "200 epochs linear 92.4, 800 epochs 93.9" + _DRIFT),
        _from_byol("cifar100", 0.3, "200 epochs linear 68.9, 800 epochs 71.3" + _DRIFT),
        _from_byol("stl10", 0.4, "200 epochs linear 93.3, 800 epochs 94.3" + _DRIFT),
        _from_byol("tiny-imagenet", 0.4, "200 epochs linear 54.9, 800 epochs 56.7" + _DRIFT),
        _from_byol("imagenet100", 0.4, "200 epochs linear 85.5, 100 epochs 83.7"),
        _imagenet("", 200, 0.6, "200 epochs linear 73.1"),
        _imagenet("100ep", 100, 0.9, "100 epochs linear 71.4"),
    )
}
PUBLISHED = tuple(RECIPES)
RECIPES["textures"] = embedded_recipe(
    RECIPES["cifar10"], RSAOptions(projector_hidden=512, predictor_hidden=512, beta=0.3)
)


def rsa_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[RSAOptions]:
    """RSA as its authors train it on `data`, or a marked proposal."""
    return choose_recipe(RECIPES, data, image_size)


METHODS = (
    Method(
        "rsa", "BYOL whose weak views teach aggressive ones, which also attract each other", RSA, rsa_recipe, PUBLISHED
    ),
)
