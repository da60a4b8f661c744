"""CACR at small scale: far positives attract more, near negatives repel more, among K+1 views of one network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from saccade.losses.objective import Method, Objective
from saccade.losses.recipe import (
    NO_NORMALISATION,
    NORMALISATION,
    OptimizerSpec,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    embedded_recipe,
)
from saccade.models.backbone import BackboneSpec
from saccade.models.gather import all_gather
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.operations import Grey, Jitter
from saccade.pipelines.views import Crop, View, Views

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


CODE = "JegZheng/CACR-SSL @fbc9d94"


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


def cacr_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[CACROptions]:
    """The authors' recipe for `data`, our proposal, or the nearest."""
    return choose_recipe(RECIPES, data, image_size)


NORMALISE = {  # the authors' own numbers
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.44087802, 0.42790631, 0.38678794), (0.26826769, 0.26104504, 0.26866837)),
}


def _views(data: str, size: int, scale: float, count: int = 5) -> Views:
    view = View("view", size, Crop((scale, 1.0)), operations=(Jitter(0.4, 0.4, 0.4, 0.4, p=1.0), Grey(0.2)))
    return Views(view.times(count), *NORMALISE.get(data, NORMALISATION.get(data, NO_NORMALISATION)))


def _recipe(data: str, size: int, scale: float, t_neg: float, tau_source: str) -> TrainingRecipe[CACROptions]:
    return TrainingRecipe(
        method="cacr",
        data=data,
        image_size=size,
        views=_views(data, size, scale),
        backbone=BackboneSpec("small_alexnet", "plain"),
        options=CACROptions(t_neg=t_neg),
        optimizer=OptimizerSpec("sgd", 0.06, 128, weight_decay=1e-4, rule="all"),
        schedule=ScheduleSpec("step_decay", {"milestones": (155, 170, 185), "gamma": 0.1}),
        epochs=200,
        batch_size=128,
        batch_norm="sync",
        protocol="cacr-a",
        sources={
            "options.t_neg": tau_source,
            "optimizer": f"{CODE}, sub-README: lr 0.12 * batch/256, not scaled by K",
            "views": f"{CODE}: jitter always, no blur; K = 4, five views",
            "backbone": f"{CODE}, as align_uniform's",
            "batch_norm": "sync is the original's one process",
            "options.detach_weights": f"{CODE}: gradient through the weights",
            "options.gather": "ours: N processes are one; the original has one",
            "protocol": f"{CODE}: best epoch is printed",
        },
    )


def _with_resnet(
    recipe: TrainingRecipe[CACROptions], backbone: str = "resnet18", stem: str = "cifar", variant: str = ""
) -> TrainingRecipe[CACROptions]:
    why = "ours: CACR's small-scale code has no ResNet; its loss with SimCLR's two-layer projector"
    return replace(
        recipe,
        backbone=BackboneSpec(backbone, stem),
        options=replace(recipe.options, t_neg=2.0, projector_hidden=(512,)),
        proposals={"backbone": why},
        variant=variant,
    )


def _proposal(data: str, backbone: str, size: int) -> TrainingRecipe[CACROptions]:
    recipe = _with_resnet(
        _recipe(data, size, 0.2 if size < 100 else 0.08, 2.0, "as CIFAR-100"),
        backbone,
        "cifar" if size < 100 else "plain",
    )
    return replace(
        recipe, protocol="linear-aug", proposals={**recipe.proposals, "data": f"no authors' recipe for {data}"}
    )


def _textures() -> TrainingRecipe[CACROptions]:
    """The proposal for the embedded set: K = 1, a jitter that leaves the hue near what it is."""
    recipe = _with_resnet(_recipe("textures", 32, 0.2, 2.0, "as CIFAR-100"), "test_resnet")
    view = View("view", 32, Crop((0.2, 1.0)), operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2)))
    return embedded_recipe(replace(recipe, views=Views(view.times(2))), recipe.options)


_AUTHORS = (
    _recipe("cifar10", 32, 0.2, 0.9, f"{CODE}, sub-README; the CLI's default is 1"),
    _recipe("cifar100", 32, 0.2, 2.0, f"{CODE}, sub-README; the CLI's default is 1"),
    _recipe("stl10", 64, 0.08, 2.0, f"{CODE}, sub-README; the CLI's defaults are beta 2, t_neg 1"),
)
_OURS = (
    _textures(),
    *(_with_resnet(r, variant="resnet18") for r in _AUTHORS),
    _proposal("tiny-imagenet", "resnet18", 64),
    _proposal("imagenet100", "resnet50", 224),
    _proposal("imagenet", "resnet50", 224),
)
RECIPES = {recipe.name: recipe for recipe in (*_AUTHORS, *_OURS)}

METHODS = (
    Method(
        "cacr",
        "K+1 views: far positives attract more, near negatives repel more (small scale)",
        CACR,
        cacr_recipe,
        (*(r.name for r in _AUTHORS), *(r.name for r in _OURS if r.variant)),
    ),
)
