"""--set: one language for a value, a group, a view, an operation, a schedule; and one sentence for what cannot be."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from saccade import train
from saccade.base.errors import UserError
from saccade.losses.recipe import TrainingRecipe
from saccade.losses.registry import find_method
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.erase import Erase
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import CentreCrop, Crop, View
from saccade.runs.config import changed, resolve
from saccade.runs.flags import check_flags, parse_flags
from saccade.runs.settings import with_settings


def resa(*settings: str) -> TrainingRecipe:
    return with_settings(find_method("resa").recipe("cifar10", None), settings)


def test_a_group_is_given_as_a_table_and_is_then_just_that():
    recipe = resa(
        "views.weak.blur={p=0.5, sigma=[0.1,2.0]}",
        "views.weak.crop={scale=[0.08, 1.0]}",
        'optimizer={name="adamw", lr=1e-3, lr_batch=256, weight_decay=0.1}',
    )
    assert recipe.views["weak"].operations == (Blur(0.5, (0.1, 2.0)),)
    assert recipe.views["weak"].crop == Crop((0.08, 1.0))
    assert (recipe.optimizer.name, recipe.optimizer.rule, recipe.optimizer.lr) == ("adamw", "all", 1e-3)
    assert resa("views.weak.crop={fraction=0.875}").views["weak"].crop == CentreCrop(0.875)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("views.strong.crop.scale=[0.1, 0.9]", (0.1, 0.9)),
        ("views.strong.crop.scale=0.1,0.9", (0.1, 0.9)),
        ("views.strong.crop.scale=(.1, .9)", (0.1, 0.9)),
    ],
)
def test_brackets_are_a_shells_to_leave_out(written, read):
    assert resa(written).views["strong"].crop.scale == read


@pytest.mark.parametrize("text", ["row", '"row"', "'row'"])
def test_quotes_are_a_shells_to_leave_out(text):
    assert resa(f"options.form={text}").options.form == "row"


def test_none_switches_a_view_an_operation_and_any_optional_value_off():
    assert resa("views.strong=none").views.names == ("weak",)
    assert [type(o) for o in resa("views.strong.grey=none").views["strong"].operations] == [Jitter, Solarise]
    assert resa("views.strong.operations=none").views["strong"].operations == ()
    assert with_settings(find_method("stec").recipe("stl10", None), ["companion=none"]).companion is None
    assert with_settings(find_method("resa").recipe("imagenet", None), ["options.predictor_hidden=none"]).options == (
        find_method("resa").recipe("cifar10", None).options
    )
    vit = find_method("resa").recipe("imagenet-vit-multicrop", None)
    assert vit.backbone.options and not with_settings(vit, ["backbone.options=none"]).backbone.options


def test_plus_adds_a_view_an_operation_or_an_entry():
    like = resa("views.small+=strong", "views.small.size=16", "views.small.crop.scale=0.05,0.3").views
    assert like.names == ("weak", "strong", "small") and like["small"].operations == like["strong"].operations
    assert like["small"].size == 16 and like["strong"].size == 32
    for written in (
        'views+={name="local", size=24, flip=0, grey=0.1}',
        "views.local+={size=24, flip=0.0, grey={p=0.1}}",
    ):
        assert resa(written).views["local"] == View("local", 24, flip=0.0, operations=(Grey(0.1),))
    recipe = resa(
        "views.weak.operations+=erase", 'views.weak.operations+={name="erase", p=0.1}', "views.weak.erase+={}"
    )
    assert recipe.views["weak"].operations == (Erase(), Erase(p=0.1), Erase())
    stec = with_settings(find_method("stec").recipe("cifar10", None), ["options.predicts+=jitter.hue"])
    assert stec.options.predicts == ("crop", "flip", "jitter.hue")


def test_a_usual_operation_stands_where_the_papers_have_it_and_may_be_moved():
    recipe = resa("views.strong.erase=0.2", "views.strong.blur=0.5")
    assert list(recipe.views["strong"].keyed) == ["jitter", "grey", "blur", "solarise", "erase"]
    moved = with_settings(recipe, ["views.strong.operations=erase,solarise,jitter"])
    assert list(moved.views["strong"].keyed) == ["erase", "solarise", "jitter"]


def test_another_kind_of_schedule_brings_its_own_options():
    assert dict(resa("schedule.kind=step_decay").schedule.options) == {"milestones": (155, 170, 185), "gamma": 0.1}
    kept = resa("schedule.options.warmup_epochs=3", "schedule.kind=warmup_cosine").schedule
    assert (kept.kind, dict(kept.options)) == ("warmup_cosine", {"warmup_epochs": 3.0})
    recipe = resa("schedule={kind='step_decay', options={milestones=[1, 2]}}")
    assert dict(recipe.schedule.options) == {"milestones": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["schedule.options.milestones=1,2"], "linspace_cosine has no such option; it takes warmup_epochs, final"),
        (["schedule.kind=warm_cosine"], "did you mean warmup_cosine"),
        (["schedule=none"], "schedule.kind, schedule.options"),
        (["options.temprature=1"], "did you mean temperature"),
        (["views.waek.flip=0"], r"no view 'waek'; use one of weak, strong.*did you mean weak"),
        (["views.wide={size=32}"], r"views.wide\+=... to add it"),
        (["views.weak+=strong"], "there is a view of that name already"),
        (["views.weak.blurr=0.5"], "did you mean blur"),
        (["views.weak.blur.sgma=0.5"], "use one of p, sigma, kernel_size"),
        (["views.weak.blur={p=2}"], "p = 2.0 is no probability"),
        (["views.weak.blur={p=0.5"], "no value of TOML"),
        (["views.weak.crop.scale=0.5"], r"give a list"),
        (["views.weak.crop.scale=0.5,0.6,0.7"], "give 2 values"),
        (["views.weak.crop.scale.x=1"], "nothing so deep"),
        (["options.iterations=2.5"], "no int; give a whole number"),
        (["options.transformer_heads=1"], "no bool; give true or false"),
        (["options.temperature.x=1"], "options.temperature is one value"),
        (["optimizer={name='sgd', lr=1}"], "lr_batch, weight_decay must be given too"),
        (["options.projector_dim=0"], "give 1 or more"),
        (["optimizer.rule=al"], "did you mean all"),
        (["optimizer.betas=1,0.9"], "without 1"),
        (["backbone.stem=cifarr"], "did you mean cifar"),
        (["backbone.name=resnet81"], "the nearest are"),
        (["views.std=0,1,1"], "positive numbers"),
        (["views.weak.jitter.brightness=inf"], "finite numbers"),
        (["epochs+=3"], "adds a view, an operation or an entry"),
        (["epochs=99999999999999999999"], "too large"),
        (["sources.views=\x1b[31m"], "no value of TOML"),
    ],
)
def test_what_cannot_be_is_one_sentence_that_names_the_setting(settings, words):
    flags = Namespace(
        set=settings, operation=[], backbone=None, **dict.fromkeys(("epochs", "batch_size", "image_size", "lr"))
    )
    with pytest.raises(UserError, match=words) as caught:
        changed(find_method("resa").recipe("cifar10", None), flags)
    assert str(caught.value).startswith(f"--set {settings[-1]}")


def resolved(*flags: str):
    given = parse_flags(["--method", "resa", "--recipe", "imagenet", "--device", "cpu", *flags])
    check_flags(given)
    return resolve(given, ArraySource("noise", np.zeros((16, 8, 8, 3), np.uint8)), Path(".")).recipe


def test_what_is_set_of_the_backbone_is_set_of_the_one_that_is_named():
    plain, small = (
        resolved("--backbone", "resnet18"),
        resolved("--backbone", "resnet18", "--set", "backbone.stem=cifar"),
    )
    assert (plain.backbone.stem, small.backbone.stem) == ("plain", "cifar")
    assert resolved("--set", "backbone.options.drop_rate=0.1", "--backbone", "vit_tiny_patch16_224").backbone.options
    kept = resolved("--recipe", "tiny-imagenet", "--backbone", "resnet18").backbone  # the recipe's own name
    assert kept.stem == "cifar-maxpool"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backbone", "resnet18", "--set", "backbone.name=resnet34"], "--backbone resnet18 and --set backbone.name"),
        (["--epochs", "3", "--set", "epochs=4"], "--epochs 3 and --set epochs=4 contradict"),
        (["--batch-size", "4", "--set", "batch_size=8"], "--batch-size 4 and --set"),
        (["--lr", "0.1", "--set", "optimizer.lr=0.2"], "--lr 0.1 and --set"),
        (["--image-size", "64", "--set", "image_size=32"], "--image-size 64 and --set"),
    ],
)
def test_a_flag_and_a_setting_that_contradict_each_other_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        resolved(*flags)


def test_networks_of_impossible_sizes_are_one_sentence(capsys, tmp_path):
    huge = ["--set", "options.projector_hidden=900000000000", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert train.main(["--method", "simclr", *huge]) == 2
    assert "cannot be built" in capsys.readouterr().err and not (tmp_path / "run").exists()
