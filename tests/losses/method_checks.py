"""What a test of a method's objective needs: a small learner of a recipe, random views, and who got a gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from saccade.losses.recipe import TrainingRecipe
from saccade.losses.registry import find_method
from saccade.models.backbone import BackboneSpec, create_backbone, feature_size
from saccade.models.learner import Learner
from saccade.pipelines.draw import ViewParams, draw

SIZE = 32


def small(recipe: TrainingRecipe, batch: int = 8, **options: object) -> TrainingRecipe:
    """The recipe with timm's smallest ResNet, `batch` images a step and changed options."""
    return replace(
        recipe,
        backbone=BackboneSpec("test_resnet", "plain"),
        batch_size=batch,
        options=replace(recipe.options, **options),
    )


def learner_of(recipe: TrainingRecipe, classes: int | None = None, steps: int = 10) -> Learner:
    torch.manual_seed(0)
    backbone = create_backbone(recipe.backbone, SIZE)
    return Learner(
        backbone, find_method(recipe.method).objective(recipe, feature_size(backbone, SIZE), classes, steps, steps)
    )


def images_of(recipe: TrainingRecipe, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, ViewParams]]:
    """Noise for every view of the recipe, and drawn parameters."""
    generator = torch.Generator().manual_seed(seed)
    views = {v.name: torch.randn(recipe.batch_size, 3, v.size, v.size, generator=generator) for v in recipe.views}
    index = torch.arange(recipe.batch_size)
    return views, draw(recipe.views, seed, 0, index, torch.full((recipe.batch_size, 2), 40))


def trained_parts(learner: Learner) -> set[str]:
    """Names, two words deep, of the modules with a gradient that is not all zeros."""
    return {
        ".".join(name.split(".")[:2]) for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()
    }
