"""Recipes of losses/cacr_queue.py, with the source of every value."""

from __future__ import annotations

from dataclasses import replace

from saccade.losses.ablation import Ablation
from saccade.losses.cacr_queue import CACRQueue, CACRQueueOptions
from saccade.losses.objective import Method
from saccade.losses.recipe import TrainingRecipe, choose_recipe, derive_recipe
from saccade.losses.recipes.cacr import CODE, positives
from saccade.losses.recipes.moco import SMALL, V2_RECIPES, on_textures, small_v2, v2_views


def cacr_queue_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[CACRQueueOptions]:
    """The authors' recipe on ImageNet and ImageNet-100, else ours."""
    return choose_recipe(RECIPES, data, image_size)


def _recipe(data: str, views: int = 5) -> TrainingRecipe[CACRQueueOptions]:
    base = V2_RECIPES["imagenet"]
    names = tuple(f"view_{i}" for i in range(views))
    return derive_recipe(
        base,
        "cacr-queue",
        CACRQueueOptions(intra_batch="block-32"),
        data=data,
        views=v2_views(data, 224, names),
        sources={
            "options": f"{CODE}, sub-README commands; the CLI's defaults are alpha = beta = 3, t_neg 1",
            "options.intra_batch": f"{CODE}: 256 images on 8 GPUs, negatives of the same GPU",
            "options.queue_cache_quirk": f"{CODE}: one cache for all views, a defect; true does as the original",
            "optimizer": f"{CODE}, sub-README",
            "schedule": f"{CODE}: by whole epochs, no warm-up",
            "views": f"{CODE} --aug-plus",
            "batch_norm": f"{CODE}: 32 images a GPU, keys shuffled over the GPUs",
        },
    )


def _small(recipe: TrainingRecipe[CACRQueueOptions]) -> TrainingRecipe[CACRQueueOptions]:
    return replace(recipe, options=replace(recipe.options, intra_batch="batch"))


def _large(data: str) -> TrainingRecipe[CACRQueueOptions]:
    """Pre-training on more images than ImageNet-1K, on which the backbone is then judged by a linear classifier."""
    recipe = _recipe("imagenet")
    return replace(recipe, data=data, sources={**recipe.sources, "protocol": f"{CODE}: linear on ImageNet-1K"})


_AUTHORS = (_recipe("imagenet"), _recipe("imagenet100"), _large("imagenet22k"), _large("webvision"))
ABLATIONS = tuple(Ablation(f"k{k}", f"K = {k} positives", f"{CODE} --Ny", positives(k)) for k in range(1, 9))

_WHY = "no authors' recipe for {} with a queue; MoCo v2's of ours with K = 4"

_OURS = (
    *(replace(_small(small_v2(_AUTHORS[0], data, _WHY.format(data))), epochs=200) for data in SMALL),
    _small(on_textures(_recipe("textures", 2), teacher_momentum=0.99, queue_size=2048, projector_hidden=(512,))),
)

RECIPES = {recipe.name: recipe for recipe in (*_AUTHORS, *_OURS)}

METHODS = (
    Method(
        "cacr-queue",
        "CACR on MoCo v2: K+1 views, negatives from a queue and the batch",
        CACRQueue,
        cacr_queue_recipe,
        tuple(r.name for r in _AUTHORS),
        ABLATIONS,
    ),
)
