"""Recipes of losses/byol.py, with the source of every value."""

from __future__ import annotations

from dataclasses import replace

from saccade.losses.ablation import Ablation, Recipe, by_data
from saccade.losses.byol import BYOL, BYOLOptions
from saccade.losses.objective import Method
from saccade.losses.recipe import (
    NORMALISATION,
    OptimizerSpec,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    embedded_recipe,
)
from saccade.models.backbone import BackboneSpec
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.views import Crop, View, Views

CODE = "deepmind-research/byol, configs/byol.py"

RSA_CODE = "tmllab/2022_NeurIPS_RSA @f4fa807, its BYOL baseline (mode aa)"

RSA_NORMALISATION = {**NORMALISATION} | dict.fromkeys(  # RSA's code normalises CIFAR-100 as CIFAR-10
    ("cifar10", "cifar100"), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
)


def _rsa_baseline(
    data: str,
    size: int,
    arch: str,
    stem: str,
    protocol: str,
    options: BYOLOptions,
    optimizer: OptimizerSpec,
    schedule: ScheduleSpec,
    precision: str,
    result: str,
) -> TrainingRecipe[BYOLOptions]:
    operations = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5))
    view = View("view_1", size, Crop((0.2, 1.0)), operations=operations)
    return TrainingRecipe(
        method="byol",
        data=data,
        image_size=size,
        views=Views((view, replace(view, name="view_2")), *RSA_NORMALISATION[data]),
        backbone=BackboneSpec(arch, stem, zero_init_last=True),
        options=replace(options, momentum_offset=1),
        optimizer=optimizer,
        schedule=schedule,
        epochs=200,
        batch_size=256,
        precision=precision,
        protocol=protocol,
        sources={
            "options": f"{RSA_CODE}: momentum from 0.99, its step counted before use; no bias in the last layers",
            "views": RSA_CODE,
            "optimizer": RSA_CODE,
            "epochs": f"RSA's Tables 2 and 3: {result}",
        },
    )


def _small(data: str, size: int, result: str) -> TrainingRecipe[BYOLOptions]:
    return _rsa_baseline(
        data,
        size,
        "resnet18",
        "cifar",
        "rsa-small",
        BYOLOptions(),
        OptimizerSpec("sgd", 0.1, 256, weight_decay=5e-4),
        ScheduleSpec("epoch_cosine"),
        "fp32",
        result,
    )


def _imagenet(
    variant: str, epochs: int, lr: float, weight_decay: float, momentum: float
) -> TrainingRecipe[BYOLOptions]:
    crop, colour = Crop((0.08, 1.0), interpolation="bicubic"), (Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2))
    first = View("view_1", 224, crop, operations=(*colour, Blur(1.0, kernel_size=23)))
    second = replace(first, name="view_2", operations=(*colour, Blur(0.1, kernel_size=23), Solarise(0.2)))
    return TrainingRecipe(
        method="byol",
        data="imagenet",
        variant=variant,
        image_size=224,
        views=Views((first, second), *NORMALISATION["imagenet"]),
        backbone=BackboneSpec("resnet50", "plain", zero_init_last=True),
        options=BYOLOptions(momentum, 4096, 256, 4096),
        optimizer=OptimizerSpec("lars", lr, 256, weight_decay, rule="ndim", lars_norm="decayed"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 10}),
        epochs=epochs,
        batch_size=4096,
        batch_norm="sync",
        protocol="linear-aug",
        sources={
            "optimizer": CODE,
            "options.teacher_momentum": CODE,
            "batch_norm": CODE,
            "schedule": CODE,
            "views": "arXiv 2006.07733, App. B",
            "options.output_bias": "arXiv 2006.07733: the output has neither bias nor BatchNorm",
            "epochs": "arXiv 2006.07733: 1000 epochs linear 74.3",
        },
        proposals={"protocol": "the paper sweeps the rate of its linear classifier; ours is fixed"},
    )


RECIPES = {
    r.name: r
    for r in (
        _small("cifar10", 32, "200 epochs linear 90.3, 800 epochs 92.5"),
        _small("cifar100", 32, "200 epochs linear 64.7, 800 epochs 69.5"),
        _small("stl10", 64, "200 epochs linear 91.6, 800 epochs 93.6"),
        _small("tiny-imagenet", 64, "200 epochs linear 49.7, 800 epochs 53.4"),
        _rsa_baseline(
            "imagenet100",
            224,
            "resnet50",
            "plain",
            "rsa-imagenet",
            BYOLOptions(0.99, 4096, 256, 4096),
            OptimizerSpec("sgd", 0.2, 256, weight_decay=1e-4),
            ScheduleSpec("warmup_cosine"),
            "fp16",
            "200 epochs linear 83.6, 100 epochs 80.9",
        ),
        _imagenet("", 1000, 0.2, 1.5e-6, 0.996),
        _imagenet("300ep", 300, 0.3, 1e-6, 0.99),
        _imagenet("100ep", 100, 0.45, 1e-6, 0.99),
    )
}

PUBLISHED = tuple(RECIPES)

RECIPES["textures"] = embedded_recipe(RECIPES["cifar10"], BYOLOptions(projector_hidden=512, predictor_hidden=512))


def byol_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[BYOLOptions]:
    """BYOL as its authors train it on ImageNet, as RSA's authors do elsewhere, or a marked proposal."""
    return choose_recipe(RECIPES, data, image_size)


def _aggressive_and_weak(recipe: Recipe) -> Recipe:
    """The teacher sees the crops alone, the student the same crops in other colours."""
    first = recipe.views.views[0]
    weak = [replace(first, name=f"weak_{i}", operations=()) for i in (1, 2)]
    made = [replace(first, name=f"aggressive_{i}", parent=f"weak_{i}") for i in (1, 2)]
    return replace(recipe, views=replace(recipe.views, views=(*weak, *made)))


def _weak_alone(recipe: Recipe) -> Recipe:
    return replace(
        recipe, views=replace(recipe.views, views=tuple(replace(view, operations=()) for view in recipe.views))
    )


_TABLE = "arXiv 2206.01999 (RSA), Table 1, 200 epochs (ImageNet-100: 100)"
ABLATIONS = (  # aa, both aggressive, is the recipe itself
    Ablation(
        "aw",
        "aggressive views for the student, weak ones for the teacher",
        _TABLE,
        _aggressive_and_weak,
        by_data(90.7, 66.0, 90.7, 51.4, 81.2),
    ),
    Ablation("ww", "weak views for both", _TABLE, _weak_alone),
)

METHODS = (Method("byol", "predict a teacher's embedding of the other view", BYOL, byol_recipe, PUBLISHED, ABLATIONS),)
