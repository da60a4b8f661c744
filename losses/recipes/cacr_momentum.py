"""Recipes of losses/cacr_momentum.py, with the source of every value."""

from __future__ import annotations

from dataclasses import asdict, replace

from saccade.losses.cacr_momentum import CACRMomentum, CACRMomentumOptions
from saccade.losses.moco import MoCoV3Options
from saccade.losses.objective import Method
from saccade.losses.recipe import TrainingRecipe, choose_recipe, derive_recipe
from saccade.losses.recipes.cacr import CODE
from saccade.losses.recipes.moco import SMALL, V3_RECIPES, on_textures, small_v3
from saccade.pipelines.operations import Blur
from saccade.pipelines.views import Crop, Views


def cacr_momentum_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[CACRMomentumOptions]:
    """The authors' recipe on ImageNet (also imagenet-vit), else ours."""
    return choose_recipe(RECIPES, data, image_size)


def _with_local_crops(views: Views, size: int, count: int = 8) -> Views:
    first, second = views
    blur, crop = first.get(Blur), Crop((0.05, 0.4), interpolation="bicubic")
    often = first.replaced("blur", blur and replace(blur, p=0.5))
    local = replace(often, name="local", size=size, crop=crop)
    return replace(views, views=(first, second, *local.times(count)))


def _authors(base: TrainingRecipe[MoCoV3Options], m: float) -> TrainingRecipe[CACRMomentumOptions]:
    options = CACRMomentumOptions(**asdict(base.options))
    return derive_recipe(
        base,
        "cacr-momentum",
        replace(options, teacher_momentum=m),
        views=_with_local_crops(base.views, 96),
        backbone=replace(base.backbone, freeze_patches=False),
        sources={
            **base.sources,
            "optimizer": f"{CODE}, sub-README",
            "options": f"{CODE}, sub-README",
            "protocol": CODE,
            "views": f"{CODE}: 8 local crops, light mode. The printed commands lack --use-local-crops, without which "
            "it is half of MoCo v3's loss; that the published numbers had them is inferred (sub-README, note 3)",
            "options.reduction": f"{CODE}: mean for rbf; its euclidean sums over a GPU's images, ours averages unless "
            "options.reduction=sum",
        },
    )


def _small(recipe: TrainingRecipe[CACRMomentumOptions], data: str) -> TrainingRecipe[CACRMomentumOptions]:
    """Ours: four local crops of half the size, so that a step costs about two more global views."""
    base = small_v3(V3_RECIPES["imagenet"], data, f"no authors' recipe for {data} with a teacher; MoCo v3's of ours")
    views = _with_local_crops(base.views, max(16, base.image_size // 2), 4) if data in SMALL else recipe.views
    return derive_recipe(
        base,
        "cacr-momentum",
        CACRMomentumOptions(**asdict(base.options)),
        views=views,
        sources={**base.sources, "options.reduction": recipe.sources["options.reduction"]},
    )


_AUTHORS = (_authors(V3_RECIPES["imagenet"], 0.996), _authors(V3_RECIPES["imagenet-vit"], 0.99))

_TEXTURES = on_textures(
    replace(_AUTHORS[0], views=V3_RECIPES["imagenet"].views),
    temperature=0.2,
    teacher_momentum=0.99,
    projector_hidden=(512,),
    projector_dim=128,
    predictor_hidden=(512,),
)

_OURS = (
    *(_small(_AUTHORS[0], data) for data in (*SMALL, "imagenet100")),
    replace(_TEXTURES, views=_with_local_crops(_TEXTURES.views, 16, 2)),
)

RECIPES = {recipe.name: recipe for recipe in (*_AUTHORS, *_OURS)}

METHODS = (
    Method(
        "cacr-momentum",
        "CACR on MoCo v3: far queries of a key weigh more; local crops",
        CACRMomentum,
        cacr_momentum_recipe,
        tuple(r.name for r in _AUTHORS),
    ),
)
