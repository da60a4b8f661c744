"""Recipes of losses/rsa.py, with the source of every value."""

from __future__ import annotations

from dataclasses import asdict, replace

from saccade.losses.ablation import Ablation, by_data, with_options
from saccade.losses.objective import Method
from saccade.losses.recipe import (
    OptimizerSpec,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    derive_recipe,
    embedded_recipe,
)
from saccade.losses.recipes.byol import byol_recipe
from saccade.losses.rsa import RSA, RSAOptions
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.views import Crop, View, Views

CODE = "tmllab/2022_NeurIPS_RSA @f4fa807"


def _views(base: Views, size: int) -> Views:
    weak = [View(f"weak_{i}", size, Crop((0.2, 1.0))) for i in (1, 2)]
    operations = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5))
    aggressive = [
        replace(view, name=f"aggressive_{i}", parent=view.name, operations=operations) for i, view in enumerate(weak, 1)
    ]
    return replace(base, views=(*weak, *aggressive))


def _from_byol(data: str, beta: float, result: str) -> TrainingRecipe[RSAOptions]:
    """RSA's authors compare with a BYOL of their own, from which theirs differs in the views and the loss alone."""
    base = byol_recipe(data)
    sources = dict.fromkeys(("views", "optimizer", "options"), CODE)
    return derive_recipe(
        base,
        "rsa",
        RSAOptions(**{**asdict(base.options), "teacher_momentum": 0.99}, beta=beta),
        views=_views(base.views, base.image_size),
        sources={
            **sources,
            "epochs": f"arXiv 2206.01999: {result}",
            "options.beta": "arXiv 2206.01999; the code's default is 0.4 on every data set",
        },
        proposals={},
    )


def _imagenet(variant: str, epochs: int, lr: float, result: str) -> TrainingRecipe[RSAOptions]:
    base = _from_byol("imagenet", 0.4, result)
    return replace(
        base,
        variant=variant,
        epochs=epochs,
        batch_size=2048,
        precision="fp16",
        protocol="rsa-imagenet",
        optimizer=OptimizerSpec("lars", lr, 256, weight_decay=1e-6, rule="ndim", lars_norm="decayed"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 10}),
        batch_norm="sync",
        sources={
            **base.sources,
            "optimizer.lr": "README (200 epochs), arXiv 2206.01999 (100 epochs)",
            "precision": "arXiv 2206.01999; the README's command leaves it out",
        },
    )


_DRIFT = "; printed after a probe in train mode: eval.py --batch-norm-drift"

RECIPES = {
    r.name: r
    for r in (
        _from_byol("cifar10", 0.3, "200 epochs linear 92.4, 800 epochs 93.9" + _DRIFT),
        _from_byol("cifar100", 0.3, "200 epochs linear 68.9, 800 epochs 71.3" + _DRIFT),
        _from_byol("stl10", 0.4, "200 epochs linear 93.3, 800 epochs 94.3" + _DRIFT),
        _from_byol("tiny-imagenet", 0.4, "200 epochs linear 54.9, 800 epochs 56.7" + _DRIFT),
        _from_byol("imagenet100", 0.4, "200 epochs linear 85.5, 100 epochs 83.7"),
        _imagenet("", 200, 0.6, "200 epochs linear 73.1"),
        _imagenet("100ep", 100, 0.9, "100 epochs linear 71.4"),
    )
}

PUBLISHED = tuple(RECIPES)

RECIPES["textures"] = embedded_recipe(
    RECIPES["cifar10"], RSAOptions(projector_hidden=512, predictor_hidden=512, beta=0.3)
)


def rsa_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[RSAOptions]:
    """RSA as its authors train it on `data`, or a marked proposal."""
    return choose_recipe(RECIPES, data, image_size)


_TABLE = "arXiv 2206.01999, Table 1, beta_base 0.5, 200 epochs (ImageNet-100: 100)"
ABLATIONS = (
    Ablation(
        "fixed-beta",
        "beta stays at 0.5",
        _TABLE,
        with_options(beta=0.5, beta_schedule="constant"),
        by_data(91.5, 67.2, 93.0, 53.6, 83.2),
    ),
    Ablation("beta-0.5", "beta falls from 0.5", _TABLE, with_options(beta=0.5), by_data(92.2, 68.1, 93.0, 54.4, 83.5)),
)

METHODS = (
    Method(
        "rsa",
        "BYOL whose weak views teach aggressive ones, which also attract each other",
        RSA,
        rsa_recipe,
        PUBLISHED,
        ABLATIONS,
    ),
)
