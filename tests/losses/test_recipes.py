"""The recipes: complete, buildable, with the authors' parameter counts and schedules; the command that prints them."""

import json
import math
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation.registry import find_protocol
from saccade.losses.recipe import IMAGE_SIZE, TrainingRecipe
from saccade.losses.registry import find_method, methods
from saccade.models.backbone import BackboneSpec, create_backbone
from saccade.models.norm import batch_norm_splits
from saccade.models.schedules import schedule
from saccade.runs.flags import check_recipe_name
from saccade.tools.recipes import main, origin, recipe_names

ALL = [(method.name, name) for method in methods().values() for name in recipe_names(method)]


def _count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


def _objective(recipe: TrainingRecipe, features: int):
    with torch.device("meta"):
        return find_method(recipe.method).objective(recipe, features, 10, 10, 100)


@pytest.mark.parametrize(("method", "name"), ALL)
def test_recipe_is_complete_and_builds_its_objective(method, name):
    recipe = find_method(method).recipe(name, None)
    assert (recipe.method, recipe.name) == (method, name)
    assert all(view.size <= recipe.image_size for view in recipe.views)
    objective = _objective(recipe, 16)
    with torch.device("meta"):
        assert _count(objective.projector()) > 0
        objective.predictor()
    assert recipe.batch_size % batch_norm_splits(recipe.batch_norm) == 0
    find_protocol(recipe.protocol, recipe.image_size)
    known = {f.name for f in fields(TrainingRecipe)} | {"all"}
    for key in (*recipe.sources, *recipe.proposals):  # notes are about fields that exist
        first, _, rest = key.partition(".")
        assert first in known, key
        assert not rest or first == "views" or rest in {f.name for f in fields(getattr(recipe, first))}, key
    if origin(find_method(method), recipe) == "proposal":
        assert recipe.proposals, "a recipe that is not the authors' says so"


@pytest.mark.parametrize(
    ("method", "name", "projector", "predictor"),
    [
        ("resa", "cifar10", 6_304_256, 0),
        ("resa", "imagenet", 9_449_984, 2_103_808),
        ("rsa", "cifar10", 658_432, 265_216),
        ("ressl", "imagenet", 33_998_400 - 23_508_032, 0),
    ],
)
def test_heads_have_the_originals_parameter_counts(method, name, projector, predictor):
    recipe = find_method(method).recipe(name, None)
    objective = _objective(recipe, 2048 if recipe.backbone.name == "resnet50" else 512)
    with torch.device("meta"):
        assert (_count(objective.projector()), _count(objective.predictor())) == (projector, predictor)


@pytest.mark.parametrize(
    ("method", "name", "encoder"),
    [
        ("resa", "cifar10", 11_168_832),
        ("rsa", "tiny-imagenet", 11_168_832),
        ("ressl", "stl10", 11_168_832),
        ("resa", "imagenet", 23_508_032),
    ],
)
def test_encoders_have_the_originals_parameter_counts(method, name, encoder):
    recipe = find_method(method).recipe(name, None)
    with torch.device("meta"):
        assert _count(create_backbone(recipe.backbone, recipe.image_size)) == encoder


def test_resa_stem_as_the_authors_ran_it_ends_in_5x5_maps():
    sizes = {}
    for stem in ("cifar", "cifar-pad"):
        with torch.device("meta"):
            backbone: Any = create_backbone(BackboneSpec("resnet18", stem), 32)
            sizes[stem] = backbone.forward_features(torch.empty(1, 3, 32, 32)).shape[-1]
    assert sizes == {"cifar": 4, "cifar-pad": 5}


@pytest.mark.parametrize(
    ("method", "name", "steps", "per_epoch", "first", "peak_at", "last"),
    [
        # peak rates: 0.3 at 256; 0.5 at 256; 0.06; 0.6 * 2048 / 256; ends: a tenth, or next to 0
        ("resa", "cifar10", 195_000, 195, 0.0, (389, 0.3), 0.03),
        ("resa", "imagenet", 1_000_800, 5004, 0.0, (10007, 0.5), 0.05),
        ("resa", "imagenet-vit", 375_300, 1251, 0.0, (50039, 2e-3), 4e-4),
        ("ressl", "cifar10", 156_000, 195, 0.0, (975, 0.06), 0.0),
        ("rsa", "cifar10", 39_000, 195, 0.1, (0, 0.1), 0.0),
        ("rsa", "imagenet", 125_000, 625, 0.0, (6250, 4.8), 0.0),
        ("byol", "imagenet", 312_000, 312, 0.0, (3120, 3.2), 0.0),
    ],
)
def test_learning_rate_at_the_ends_and_the_peak(method, name, steps, per_epoch, first, peak_at, last):
    recipe = find_method(method).recipe(name, None)
    assert steps == recipe.epochs * per_epoch
    peak = recipe.optimizer.lr * recipe.batch_size / recipe.optimizer.lr_batch
    rate = schedule(recipe.schedule.kind, peak, total_steps=steps, steps_per_epoch=per_epoch, **recipe.schedule.options)
    assert rate(0) == pytest.approx(first)
    assert rate(peak_at[0]) == pytest.approx(peak_at[1])
    assert rate(steps - 1) == pytest.approx(last, abs=1e-4 * peak)


@pytest.mark.parametrize(
    ("method", "name", "first", "last"),
    [
        ("resa", "cifar10", 0.996, 1.0),
        ("ressl", "cifar10", 0.99, 0.99),
        ("ressl", "imagenet", 0.999, 0.999),
        ("rsa", "cifar10", 0.99, 1.0),
        ("byol", "imagenet", 0.996, 1.0),
    ],
)
def test_teacher_momentum_at_the_ends(method, name, first, last):
    objective = _objective(find_method(method).recipe(name, None), 16)
    assert objective.momentum(0) == pytest.approx(first, abs=1e-4 if method == "rsa" else 1e-12)
    assert objective.momentum(99) == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "tiny-imagenet", "imagenet100"])
def test_byol_of_rsas_code_counts_its_step_before_use_as_rsa_does(name):
    """One step of the cosine ahead: its m(t) is 1 - (1 - 0.99) (1 + cos(pi (t + 1) / T)) / 2."""
    byol, rsa = (_objective(find_method(m).recipe(name, None), 16).momentum for m in ("byol", "rsa"))
    assert all(byol(t) == pytest.approx(1 - 0.01 * (1 + math.cos(math.pi * (t + 1) / 100)) / 2) for t in range(100))
    assert all(byol(t) == pytest.approx(rsa(t)) for t in range(100))


@pytest.mark.parametrize("method", ["resa", "ressl", "rsa", "byol"])
def test_own_images_take_the_recipe_of_the_nearest_size_with_views_of_their_own(method):
    recipe = find_method(method).recipe("custom", 40)
    assert {view.size for view in recipe.views} == {40} and recipe.backbone.name == "resnet18"
    assert "data" in recipe.proposals and "image_size" in recipe.proposals
    assert find_method(method).recipe("custom", None).backbone.name == "resnet50"


def test_variants_are_accepted_by_name_where_the_method_has_them():
    check_recipe_name(find_method("ressl"), "imagenet-5crop")
    check_recipe_name(find_method("ressl"), None)
    with pytest.raises(UserError, match=r"unknown for resa.*did you mean imagenet-vit-multicrop"):
        check_recipe_name(find_method("resa"), "imagenet-vit-multicrops")
    five = find_method("ressl").recipe("imagenet-5crop", None)
    assert [view.size for view in five.views] == [224, 224, 192, 160, 128, 96]


def test_table_has_every_recipe_of_every_method(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ALL) and {tuple(line.split()[:2]) for line in lines[2:]} == set(ALL)
    assert {data for _, data in ALL} >= set(IMAGE_SIZE)


def test_one_recipe_in_full_names_every_value_source_and_proposal(capsys):
    assert main(["ressl", "cifar10"]) == 0
    printed = capsys.readouterr().out
    for words in ("options.queue_size", "4096", "split-8", "sources:", "issue 11", "proposals", "views.weak.crop"):
        assert words in printed
    assert main(["resa", "cifar10"]) == 0
    assert "--set backbone.stem=cifar-pad" in capsys.readouterr().out


def test_json_is_the_recipe(capsys):
    assert main(["rsa", "cifar100", "--json"]) == 0
    recipe = find_method("rsa").recipe("cifar100", None)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(recipe)))


@pytest.mark.parametrize(
    ("arguments", "words"), [(["rssl"], "did you mean ressl"), (["resa", "cifar"], "mean cifar10")]
)
def test_unknown_names_are_answered_with_the_nearest(arguments, words):
    with pytest.raises(UserError, match=words):
        main(arguments)
