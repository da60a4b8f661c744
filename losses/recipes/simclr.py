"""Recipes of losses/simclr.py, with the source of every value."""

from __future__ import annotations

from dataclasses import replace

from saccade.losses.objective import Method
from saccade.losses.recipe import OptimizerSpec, ScheduleSpec, TrainingRecipe, choose_recipe
from saccade.losses.simclr import SimCLR, SimCLROptions
from saccade.models.backbone import BackboneSpec
from saccade.pipelines.operations import Grey, Jitter, Solarise
from saccade.pipelines.operations.blur import stec_blur
from saccade.pipelines.views import Crop, View, Views

CODE = "NeuromorphicComputing/S-TEC @ee2acfc"


def simclr_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[SimCLROptions]:
    """SimCLR as S-TEC's code trains it on `data`, or the nearest of its recipes, marked as a proposal."""
    recipe = choose_recipe(_RECIPES, data, image_size)
    if recipe is _RECIPES.get(data):
        return recipe
    views = replace(recipe.views, views=tuple(v.replaced("blur", stec_blur(v.size)) for v in recipe.views))
    return replace(recipe, views=views, companion=_labelled(views))


def _views(base: str, size: int) -> Views:
    strength = 0.5 if base.startswith("cifar") else 1.0
    on_device = not base.startswith("cifar")  # blur and solarise: STL-10 and ImageNet
    jitter = Jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    operations = (jitter, Grey(0.2), *((stec_blur(size), Solarise(0.2)) if on_device else ()))
    view = View("view", size, Crop((0.08, 1.0)), operations=operations)
    return Views((replace(view, name="view_1"), replace(view, name="view_2")))


def _labelled(views: Views) -> Views:
    """View i of a labelled image, without what the original adds on the device: blur and solarise."""
    first = views["view_1"].replaced("blur", None).replaced("solarise", None)
    return replace(views, views=(replace(first, name="labelled"),))


def _published(
    data: str, size: int, arch: str, stem: str, lr: float, lr_batch: int, batch: int, epochs: int, **options
) -> TrainingRecipe[SimCLROptions]:
    sources = {
        "optimizer": f"{CODE}, LARS + SGD groups",
        "schedule": f"{CODE}, 10 warm-up epochs from 0, cosine to 0",
        "options.contrast_weight": f"{CODE}, CLI default",
        "options.projector_dim": f"{CODE}, README",
        "optimizer.lr": f"{CODE}, README",
        "views": f"{CODE}, no mean/std normalisation",
    }
    return TrainingRecipe(
        method="simclr",
        data=data,
        image_size=size,
        views=_views(data, size),
        backbone=BackboneSpec(arch, stem, zero_init_last=arch != "resnet18", conv_init="fan_in_half"),
        options=SimCLROptions(**options),
        optimizer=OptimizerSpec("lars", lr, lr_batch, weight_decay=1e-6, rule="name"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 10}),
        epochs=epochs,
        batch_size=batch,
        precision="fp16",
        batch_norm="sync",
        protocol="stec-online",
        sources=sources,
        companion=_labelled(_views(data, size)),
    )


def _resnet50(recipe: TrainingRecipe[SimCLROptions], projector_hidden: int) -> TrainingRecipe[SimCLROptions]:
    return replace(
        recipe,
        variant="resnet50",
        backbone=replace(recipe.backbone, name="resnet50", zero_init_last=True),
        options=replace(recipe.options, projector_hidden=projector_hidden),
    )


def _textures(recipe: TrainingRecipe) -> TrainingRecipe[SimCLROptions]:
    """The embedded set in two minutes on two cores: timm's smallest ResNet, a quarter of the resolution."""
    return replace(
        recipe,
        data="textures",
        backbone=BackboneSpec("test_resnet", "plain", zero_init_last=True, conv_init="fan_in_half"),
        options=replace(recipe.options, temperature=0.2),
        optimizer=OptimizerSpec("sgd", 0.05, 128, weight_decay=5e-4, rule="ndim"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 0.8}),
        epochs=8,
        batch_size=128,
        precision="fp32",
        protocol="knn",
        proposals={
            "all": "ours, to be seen working in two minutes on two CPU cores; LARS at the published rate learns "
            "nothing in so few steps"
        },
    )


_CIFAR10, _CIFAR100 = (
    _published(data, 32, "resnet18", "cifar", 4.0, 1024, 1024, 1000) for data in ("cifar10", "cifar100")
)

_STL10 = replace(
    _published("stl10", 96, "resnet18", "no-maxpool", 1.2, 1024, 1024, 1000, temperature=0.2, projector_dim=128),
    protocol="stec-stl10",
)

_IMAGENET = _published(
    "imagenet",
    224,
    "resnet50",
    "plain",
    1.97,
    1680,
    1680,
    100,
    temperature=0.1,
    projector_hidden=2048,
    projector_dim=128,
)

_AUTHORS = (
    _CIFAR10,
    _CIFAR100,
    _STL10,
    _IMAGENET,
    _resnet50(_CIFAR10, 1024),
    _resnet50(_CIFAR100, 1024),
    _resnet50(_STL10, 2048),
)

_IMAGENET100 = replace(
    _IMAGENET, data="imagenet100", epochs=200, proposals={"data": "no authors' recipe; ImageNet-1K's, 200 epochs"}
)

_TINY = replace(
    _CIFAR10,
    data="tiny-imagenet",
    image_size=64,
    views=_views("cifar10", 64),
    companion=_labelled(_views("cifar10", 64)),
    proposals={"data": "no authors' recipe; CIFAR-10's at 64 px"},
)

_RECIPES = {r.name: r for r in (*_AUTHORS, _TINY, _IMAGENET100, _textures(_CIFAR10))}

PUBLISHED = tuple(r.name for r in _AUTHORS)

METHODS = (Method("simclr", "two views attract, other images repel", SimCLR, simclr_recipe, PUBLISHED),)
