"""Recipes of losses/stec.py, with the source of every value."""

from __future__ import annotations

from dataclasses import asdict, replace

from saccade.losses.ablation import Ablation, Recipe, with_options
from saccade.losses.objective import Method
from saccade.losses.recipe import OptimizerSpec, TrainingRecipe, derive_recipe
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


def _adam(recipe: Recipe) -> Recipe:
    """--optimizer adam; its rate is that of the code's SimCLR, 1e-3 whatever the batch."""
    adam = OptimizerSpec("adam", 1e-3, recipe.batch_size, recipe.optimizer.weight_decay, rule=recipe.optimizer.rule)
    why = "lightning-bolts' default for SimCLR, not scaled; the paper's was not found"
    return replace(recipe, optimizer=adam, proposals={**recipe.proposals, "optimizer.lr": why})


_FLAG = f"{CODE}, its flag"
ABLATIONS = (
    *(
        Ablation(f"bins-{n}", f"{n} classes of every entry", f"{_FLAG} --n_bins", with_options(bins=n))
        for n in (2, 3, 4, 8, 12)
    ),
    Ablation(
        "stop-gradient-0", "labels train the backbone too", f"{_FLAG} --stop_gradient 0", with_options(stop_gradient=0)
    ),
    Ablation(
        "stop-gradient-2",
        "the classifier alone learns: a linear probe of --init",
        f"{_FLAG} --stop_gradient 2",
        with_options(stop_gradient=2),
    ),
    Ablation(
        "no-last-norm",
        "no BatchNorm after the projector",
        f"{_FLAG} --projection_final_batch_norm 0",
        with_options(projector_last_norm=False),
    ),
    Ablation("adam", "Adam instead of LARS", f"{_FLAG} --optimizer adam", _adam),
    Ablation(
        "true-translation",
        "the exact relative translation",
        "ours; the code's product is no composition",
        with_options(true_translation=True),
    ),
)

METHODS = (
    Method("stec", "SimCLR and an inverse model of the crop (efference copy)", STEC, stec_recipe, PUBLISHED, ABLATIONS),
    Method(
        "stec-byol",
        "S-TEC's inverse model on BYOL: our extension, also --method stec --stec-base byol",
        STECBYOL,
        stec_byol_recipe,
        (),
    ),
)
