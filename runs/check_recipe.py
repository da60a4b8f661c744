"""What no run could use, though each value is of its type: told before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import inf, isfinite
from typing import Any

from saccade.base.text import did_you_mean
from saccade.losses.recipe import TrainingRecipe
from saccade.models.backbone import STEMS, check_backbone
from saccade.models.norm import batch_norm_splits
from saccade.models.optimizers import NORMS, RULES
from saccade.pipelines.sources.imbalance import IMBALANCES
from saccade.runs.plain_recipe import Fault, leaves, to_plain
from saccade.runs.precision import PRECISIONS

MAX_IMAGE_SIZE = 4096  # pixels
WIDTHS = ("_dim", "_hidden", "_size")  # how the names of options end that are sizes of layers


def check_recipe(recipe: TrainingRecipe[Any]) -> None:
    """Raise Fault for the first value that is out of its range or none of those there are."""
    for path, value, allowed, right in (*_numbers(recipe), *_options(recipe)):
        if not right:
            raise Fault(path.split("."), f"give {allowed}.", value)
    for path, value, known in _words(recipe):
        if value not in known:
            raise Fault(path.split("."), f"give {', '.join(known)}{did_you_mean(value, known)}.", value)
    for keys, value in leaves(to_plain(recipe)):
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, float)]
        if not all(map(isfinite, numbers)):
            raise Fault(keys, "give finite numbers.", value)
    for path, check in (
        ("backbone.name", lambda: check_backbone(recipe.backbone.name)),
        ("batch_norm", lambda: batch_norm_splits(recipe.batch_norm, recipe.batch_size)),
    ):
        try:
            check()
        except ValueError as error:
            raise Fault(path.split("."), str(error)) from error


def _numbers(recipe: TrainingRecipe[Any]) -> Iterator[tuple[str, Any, str, bool]]:
    """Where, the value, what is allowed, and whether it is."""
    spec, size = recipe.optimizer, recipe.image_size
    yield "epochs", recipe.epochs, "1 or more", recipe.epochs >= 1
    yield "batch_size", recipe.batch_size, "2 or more", recipe.batch_size >= 2
    yield "image_size", size, f"8 to {MAX_IMAGE_SIZE} pixels (--image-size)", 8 <= size <= MAX_IMAGE_SIZE
    yield "optimizer.name", spec.name, "lars, sgd, adam or adamw", spec.name in ("lars", "sgd", "adam", "adamw")
    yield "optimizer.lr", spec.lr, "a positive number", 0 < spec.lr < inf
    yield "optimizer.lr_batch", spec.lr_batch, "1 or more", spec.lr_batch >= 1
    yield "optimizer.weight_decay", spec.weight_decay, "0 or more", 0 <= spec.weight_decay < inf
    yield "optimizer.layer_decay", spec.layer_decay, "above 0, up to 1", 0 < spec.layer_decay <= 1
    yield "optimizer.momentum", spec.momentum, "0 to 1, without 1", 0 <= spec.momentum < 1
    yield "optimizer.betas", spec.betas, "two numbers from 0 to 1, without 1", all(0 <= b < 1 for b in spec.betas)
    yield "optimizer.clip_norm", spec.clip_norm, "a positive number, or none", (spec.clip_norm or 1) > 0
    yield "backbone.freeze", recipe.backbone.freeze, "0 or more", recipe.backbone.freeze >= 0
    for group, views in (("views", recipe.views), ("companion", recipe.companion)):
        if views is not None:
            yield f"{group}.std", views.std, "positive numbers", all(std > 0 for std in views.std)
            for view in views:
                allowed = f"{MAX_IMAGE_SIZE} pixels or fewer"
                yield f"{group}.{view.name}.size", view.size, allowed, view.size <= MAX_IMAGE_SIZE
    for name, value in recipe.schedule.options.items():
        numbers = [value] if isinstance(value, int | float) else value
        yield f"schedule.options.{name}", value, "0 or more", all(0 <= v < inf for v in numbers)


def _options(recipe: TrainingRecipe[Any]) -> Iterator[tuple[str, Any, str, bool]]:
    for name, value in asdict(recipe.options).items():
        if isinstance(value, float):
            positive = "temperature" in name
            allowed = f"a {'positive' if positive else 'finite'} number"
            yield f"options.{name}", value, allowed, isfinite(value) and (value > 0 or not positive)
        elif name.endswith(WIDTHS) and value is not None and not isinstance(value, bool):
            widths = value if isinstance(value, tuple) else (value,)
            yield f"options.{name}", value, "1 or more", all(isinstance(w, int) and w >= 1 for w in widths)


def _words(recipe: TrainingRecipe[Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    yield "precision", recipe.precision, PRECISIONS
    yield "optimizer.rule", recipe.optimizer.rule, RULES
    yield "optimizer.lars_norm", recipe.optimizer.lars_norm, NORMS
    yield "imbalance", recipe.imbalance, IMBALANCES
    yield "backbone.stem", recipe.backbone.stem, ("auto", *STEMS)
    yield "backbone.conv_init", recipe.backbone.conv_init, ("default", "fan_in_half")
    yield "backbone.position", recipe.backbone.position, ("default", "sincos")
