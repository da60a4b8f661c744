"""Recipes of losses/cacr.py, with the source of every value."""

from collections.abc import Callable
from dataclasses import replace

from saccade.losses.ablation import Ablation, Recipe, with_options
from saccade.losses.cacr import CACR, CACROptions
from saccade.losses.objective import Method
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
from saccade.pipelines.operations import Grey, Jitter
from saccade.pipelines.views import Crop, View, Views

CODE = "JegZheng/CACR-SSL @fbc9d94"


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


def _imbalanced(kind: str) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, imbalance=kind)


def positives(count: int) -> Callable[[Recipe], Recipe]:
    """K = count: as many views of the first one's kind, and one more."""

    def change(recipe: Recipe) -> Recipe:
        view = replace(recipe.views.views[0], name="view")
        return replace(recipe, views=replace(recipe.views, views=view.times(count + 1)))

    return change


_K = f"{CODE} --Ny; the paper compares 1 and 4"
ABLATIONS = (
    *(Ablation(f"k{k}", f"K = {k} positives", _K, positives(k)) for k in range(1, 9)),
    *(
        Ablation(
            f"imbalanced-{kind}",
            f"images of a class by its number, {kind}",
            f"{CODE} --imbalanced, seed 2021",
            _imbalanced(kind),
        )
        for kind in ("linear", "exponential")
    ),
    *(
        Ablation(name, summary, f"{CODE} --choice", with_options(ablation=choice))
        for name, summary, choice in (
            ("no-positive-weights", "uniform weights of the positives", "without_w1"),
            ("no-negative-weights", "uniform weights of the negatives", "without_w2"),
            ("no-weights", "uniform weights of both", "none"),
        )
    ),
)

METHODS = (
    Method(
        "cacr",
        "K+1 views: far positives attract more, near negatives repel more (small scale)",
        CACR,
        cacr_recipe,
        (*(r.name for r in _AUTHORS), *(r.name for r in _OURS if r.variant)),
        ABLATIONS,
    ),
)
