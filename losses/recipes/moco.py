"""The recipes of MoCo v2 and v3: their own on ImageNet, ours, marked, on small images. CACR's queue and momentum forms
start from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saccade.losses.moco import V2, V3, MoCoV2, MoCoV2Options, MoCoV3, MoCoV3Options
from saccade.losses.objective import Method
from saccade.losses.recipe import (
    IMAGE_SIZE,
    NO_NORMALISATION,
    NORMALISATION,
    OptimizerSpec,
    OptionsT,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    embedded_recipe,
)
from saccade.models.backbone import BackboneSpec
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.views import Crop, View, Views

SMALL = {"cifar10": 32, "cifar100": 32, "stl10": 64, "tiny-imagenet": 64}  # pixels of our small recipes
VIT_OPTIONS = {"dynamic_img_size": True, "weight_init": "moco"}
VIT = BackboneSpec("vit_base_patch16_224", "plain", options=VIT_OPTIONS, position="sincos", freeze_patches=True)


def v2_views(data: str, size: int, names: tuple[str, ...]) -> Views:
    """MoCo v2's --aug-plus, the same for every view."""
    view = View("", size, Crop((0.2, 1.0)), operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), _blur(size, 0.5)))
    return Views(tuple(replace(view, name=name) for name in names), *NORMALISATION.get(data, NO_NORMALISATION))


def v3_views(data: str, size: int, smallest: float) -> Views:
    """BYOL's asymmetric pair: view_1 always blurred; view_2 seldom, but solarised with p = 0.2."""
    colour = Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2)
    first = View("view_1", size, Crop((smallest, 1.0)), operations=(*colour, _blur(size, 1.0)))
    second = replace(first, name="view_2", operations=(*colour, _blur(size, 0.1), Solarise(0.2)))
    return Views((first, second), *NORMALISATION.get(data, NO_NORMALISATION))


def without_blur(views: Views) -> Views:
    """For images of 32 pixels, as SimCLR does on CIFAR."""
    return replace(views, views=tuple(view.replaced("blur", None) for view in views))


def _blur(size: int, p: float) -> Blur:
    return Blur(p, (0.1, 2.0), kernel_size=13 if size > 12 else 3)


def _v2_imagenet(data: str) -> TrainingRecipe[MoCoV2Options]:
    return TrainingRecipe(
        method="moco-v2",
        data=data,
        image_size=224,
        views=v2_views(data, 224, ("view_1", "view_2")),
        backbone=BackboneSpec("resnet50", "plain", zero_init_last=False),
        options=MoCoV2Options(),
        optimizer=OptimizerSpec("sgd", 0.03, 256, weight_decay=1e-4, rule="all"),
        schedule=ScheduleSpec("epoch_cosine"),
        epochs=200,
        batch_size=256,
        batch_norm="group-32",
        protocol="cacr-b",
        sources={
            "optimizer": f"{V2} README",
            "schedule": f"{V2} --cos: by whole epochs, no warm-up",
            "options": f"{V2} README, v2",
            "views": f"{V2} --aug-plus",
            "batch_norm": f"{V2}: 32 images a GPU, keys shuffled over the GPUs",
        },
    )


def small_v2(
    recipe: TrainingRecipe[OptionsT],
    data: str,
    why: str,
) -> TrainingRecipe[OptionsT]:
    """A queue method on small images: ResNet-18, a short queue, and batch norm in eighths for want of many GPUs."""
    size = SMALL[data]
    views = v2_views(data, size, recipe.views.names)
    return replace(
        recipe,
        data=data,
        image_size=size,
        views=without_blur(views) if size == 32 else views,
        backbone=BackboneSpec("resnet18", "cifar"),
        batch_norm="split-8",
        options=replace(
            recipe.options,
            queue_size=4096 if size == 32 else 16384,
            teacher_momentum=0.99 if size == 32 else 0.996,
            projector_hidden=(512,),
        ),
        optimizer=OptimizerSpec("sgd", 0.06, 256, weight_decay=5e-4, rule="all"),
        schedule=ScheduleSpec("epoch_cosine"),
        protocol="linear-aug",
        proposals={"data": why, "options": "queue and momentum as in ReSSL's small-scale code"},
    )


def _v3_imagenet() -> tuple[TrainingRecipe[MoCoV3Options], TrainingRecipe[MoCoV3Options]]:
    resnet = TrainingRecipe(
        method="moco-v3",
        data="imagenet",
        image_size=224,
        views=v3_views("imagenet", 224, 0.2),
        backbone=BackboneSpec("resnet50", "plain", zero_init_last=True),
        options=MoCoV3Options(),
        optimizer=OptimizerSpec("lars", 4.8, 4096, weight_decay=1.5e-6, rule="ndim", lars_norm="decayed"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 10}),
        epochs=1000,
        batch_size=4096,
        precision="fp16",
        batch_norm="sync",
        protocol="cacr-c",
        sources={
            "optimizer": f"{V3} README, 1000 epochs: 0.3 * batch/256",
            "options": f"{V3}, ResNet-50",
            "views": f"{V3}, crop-min 0.2",
            "batch_norm": f"{V3}, SyncBN everywhere",
        },
    )
    vit = replace(
        resnet,
        backbone=VIT,
        variant="vit",
        views=v3_views("imagenet", 224, 0.08),
        options=replace(
            resnet.options, temperature=0.2, teacher_momentum=0.99, projector_hidden=(4096, 4096), predictor_norm=True
        ),
        optimizer=OptimizerSpec("adamw", 2.4e-3, 4096, weight_decay=0.1, rule="all"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 40}),
        epochs=300,
        sources={
            **resnet.sources,
            "optimizer": f"{V3} README: 1.5e-4 * batch/256",
            "options": f"{V3}, ViT",
            "views": f"{V3}, crop-min 0.08",
            "backbone": f"{V3}: fixed sine-cosine positions, frozen patch projection",
        },
    )
    return resnet, vit


def small_v3(
    recipe: TrainingRecipe[OptionsT],
    data: str,
    why: str,
) -> TrainingRecipe[OptionsT]:
    """A MoCo v3 method on small images, or ImageNet-100: SGD, smaller heads, the temperature of small batches."""
    size = SMALL.get(data, 224)
    heads = {"projector_hidden": (2048,), "predictor_hidden": (2048,)} if size < 224 else {}
    views = v3_views(data, size, 0.2)
    return replace(
        recipe,
        data=data,
        image_size=size,
        views=without_blur(views) if size == 32 else views,
        backbone=BackboneSpec("resnet18", "cifar") if size < 224 else recipe.backbone,
        options=replace(recipe.options, temperature=0.2, teacher_momentum=0.99, **heads),
        optimizer=OptimizerSpec("sgd", 0.06, 256, weight_decay=5e-4 if size < 224 else 1e-4, rule="all"),
        epochs=800 if size < 224 else 200,
        batch_size=256,
        protocol="linear-aug" if size < 224 else recipe.protocol,
        proposals={"data": why, "options": "temperature and momentum of its ViT recipe"},
    )


def on_textures(recipe: TrainingRecipe[OptionsT], **options: Any) -> TrainingRecipe[OptionsT]:
    """The proposal for the embedded set: without blur and normalisation."""
    size = IMAGE_SIZE["textures"]
    views = Views(tuple(replace(view.replaced("blur", None), size=size) for view in recipe.views))
    recipe = replace(recipe, variant="", image_size=size, views=views, batch_norm="sync")
    return embedded_recipe(recipe, replace(recipe.options, **options))


_V2 = _v2_imagenet("imagenet")
_NONE = "no authors' recipe for {}; as the small-scale baselines of the field train it"
V2_RECIPES = {
    r.name: r
    for r in (
        _V2,
        replace(_v2_imagenet("imagenet100"), proposals={"data": "as on ImageNet-1K"}),
        *(replace(small_v2(_V2, data, _NONE.format(data)), epochs=200) for data in SMALL),
        on_textures(_V2, teacher_momentum=0.99, queue_size=2048, projector_hidden=(512,)),
    )
}
_V3, _V3_VIT = _v3_imagenet()
V3_RECIPES = {
    r.name: r
    for r in (
        _V3,
        _V3_VIT,
        *(small_v3(_V3, data, _NONE.format(data)) for data in (*SMALL, "imagenet100")),
        on_textures(
            _V3,
            temperature=0.2,
            teacher_momentum=0.99,
            projector_hidden=(512,),
            projector_dim=128,
            predictor_hidden=(512,),
        ),
    )
}


def moco_v2_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[MoCoV2Options]:
    """MoCo v2's own recipe on ImageNet, else ours."""
    return choose_recipe(V2_RECIPES, data, image_size)


def moco_v3_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[MoCoV3Options]:
    """MoCo v3's own recipe on ImageNet (also imagenet-vit), else ours."""
    return choose_recipe(V3_RECIPES, data, image_size)


METHODS = (
    Method(
        "moco-v2", "a query finds its key among those of a long queue (baseline)", MoCoV2, moco_v2_recipe, ("imagenet",)
    ),
    Method(
        "moco-v3",
        "a query finds its key among those of the batch, by a predictor (baseline)",
        MoCoV3,
        moco_v3_recipe,
        ("imagenet", "imagenet-vit"),
    ),
)
