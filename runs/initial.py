"""--init: a run that starts from weights which exist, instead of from random ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from saccade.base.errors import UserError
from saccade.losses.recipe import TrainingRecipe
from saccade.models.backbone import BackboneSpec, creation_options
from saccade.models.layouts import Foreign, load_foreign
from saccade.pipelines.views import Views

TIMM = "timm"  # --init timm: the weights that timm publishes for the model


def read_initial(place: str, backbone: str, image_size: int, named: bool = True) -> Foreign:
    """What --init names: "timm", a run folder, or a file that other code wrote. `named`: the user chose `backbone`."""
    if place == TIMM:
        return timms_own(backbone, image_size, "--init timm")
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(f"--init {place}: no such run folder or file of weights; --init timm takes timm's own.")
    return load_foreign(path, backbone if named and path.is_file() else None, image_size=image_size)


def started_from(recipe: TrainingRecipe[Any], found: Foreign, statistics: bool) -> TrainingRecipe[Any]:
    """The recipe with the network of the weights and, if `statistics`, the mean and std they were made with."""
    spec = replace(recipe.backbone.renamed(found.spec.name), stem=found.spec.stem, options=found.spec.options)
    if not statistics:
        return replace(recipe, backbone=spec)

    def seen(views: Views) -> Views:
        return replace(views, mean=found.mean, std=found.std)

    companion = recipe.companion and seen(recipe.companion)
    return replace(recipe, backbone=spec, views=seen(recipe.views), companion=companion)


def timms_own(name: str, image_size: int, flag: str) -> Foreign:
    """The weights that timm publishes for a model, fetched or from its cache; `flag`: who asks, for the sentences."""
    if not timm.get_pretrained_cfg(name) or not timm.is_model_pretrained(name):
        raise UserError(f"{flag}: timm has no weights for {name}; name a model that has some.")
    spec = BackboneSpec(name, "plain")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **creation_options(spec, image_size))
    except Exception as error:  # a hub's client raises what it likes
        raise UserError(
            f"{flag}: the weights of {name} cannot be fetched ({type(error).__name__}); fetch them where there is "
            "a network and give the file instead."
        ) from error
    own: Any = model.pretrained_cfg
    return Foreign(model, spec, image_size, tuple(own["mean"]), tuple(own["std"]), f"timm's own for {name}")
