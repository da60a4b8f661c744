"""Recipes of losses/stec.py, with the source of every value."""

from __future__ import annotations

from dataclasses import asdict

from saccade.losses.objective import Method
from saccade.losses.recipe import TrainingRecipe, derive_recipe
from saccade.losses.recipes.byol import byol_recipe
from saccade.losses.recipes.simclr import CODE, PUBLISHED, simclr_recipe
from saccade.losses.stec import STEC, STECBYOL, STECBYOLOptions, STECOptions

MANIPULATION_WEIGHT = {"cifar10": 1.0, "cifar100": 1.0, "stl10": 0.3, "imagenet": 0.6}  # --manip_lambda, README


def stec_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[STECOptions]:
    """SimCLR's recipe for `data` with the inverse model's weight."""
    base = simclr_recipe(data, image_size)
    weight = MANIPULATION_WEIGHT.get(base.data, 0.6 if base.image_size > 96 else 1.0)
    return derive_recipe(
        base,
        "stec",
        STECOptions(**asdict(base.options), manipulation_weight=weight),
        sources={
            **base.sources,
            "options.manipulation_weight": f"{CODE}, README",
            "options.true_translation": f"{CODE}: a product that is no true composition; true gives the exact one",
        },
    )


def stec_byol_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[STECBYOLOptions]:
    """BYOL's recipe for `data` with the inverse model at half the weight of BYOL's loss, S-TEC's ratio on CIFAR."""
    base = byol_recipe(data, image_size)
    return derive_recipe(
        base,
        "stec-byol",
        STECBYOLOptions(**asdict(base.options), manipulation_weight=0.5),
        proposals={**base.proposals, "method": "ours: no code of S-TEC on BYOL was released"},
    )


METHODS = (
    Method("stec", "SimCLR and an inverse model of the crop (efference copy)", STEC, stec_recipe, PUBLISHED),
    Method(
        "stec-byol",
        "S-TEC's inverse model on BYOL: our extension, also --method stec --stec-base byol",
        STECBYOL,
        stec_byol_recipe,
        (),
    ),
)
