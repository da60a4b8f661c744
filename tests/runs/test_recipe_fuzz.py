"""Whatever stands in a recipe file or behind --set: it is a recipe, or one sentence; nothing else is ever raised."""

from argparse import Namespace
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.base.errors import UserError
from saccade.losses.registry import find_method
from saccade.models.schedules import schedule
from saccade.pipelines.draw import draw
from saccade.pipelines.sources import ArraySource
from saccade.runs.config import changed, resolve
from saccade.runs.flags import check_flags, parse_flags
from saccade.runs.plain_recipe import Fault, from_plain, leaves, to_plain
from saccade.runs.recipe_file import RecipeText, recipe_toml, spelt

NAMES = (("simclr", "stl10"), ("resa", "imagenet-vit-multicrop"), ("rsa", "cifar10"), ("cacr-queue", "imagenet"))
RECIPES = [find_method(method).recipe(name, None) for method, name in NAMES]
TEXTS = [recipe_toml(recipe, ("a heading",)) for recipe in RECIPES]
SOURCE = ArraySource("noise", np.zeros((64, 8, 8, 3), np.uint8))
FAST = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 0.5, 2.0, 1e-30, 1e30, 2**31])
words = st.text(max_size=8) | st.sampled_from(
    ["none", "sgd", "cifar", "bicubic", "split-0", "group-1", "constant", "weak"]
)
scalars = numbers | st.booleans() | words
values = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(words, inside, max_size=3), max_leaves=6
)


def used(file: Path, text: str) -> None:
    """As train.py does before it makes anything, and what it makes first."""
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    try:
        flags = parse_flags(["--recipe", str(file), "--device", "cpu"])
        check_flags(flags)
        tried(resolve(flags, SOURCE, Path(".")).recipe)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert "\n" not in sentence and len(sentence) < 3000


def tried(recipe: Any) -> None:
    draw(recipe.views, 0, 0, torch.arange(3), torch.tensor([[32, 40]] * 3))
    schedule(recipe.schedule.kind, 0.1, total_steps=9, steps_per_epoch=3, **recipe.schedule.options)(4)


@FAST
@given(data=st.data(), which=st.sampled_from(range(len(RECIPES))))
def test_a_value_of_another_kind_or_range(data, which, tmp_path_factory):
    plain = to_plain(RECIPES[which])
    path, _ = data.draw(st.sampled_from(list(leaves(plain))))
    depth = data.draw(st.integers(1, len(path)))
    group = plain
    for name in path[: depth - 1]:
        group = group[name]
    if data.draw(st.integers(0, 4)):
        group[path[depth - 1]] = data.draw(values)
    else:
        group[data.draw(words)] = group.pop(path[depth - 1])
    lines = [f"{spelt(name)} = {spelt(value)}" for name, value in plain.items()]
    used(tmp_path_factory.mktemp("fuzz") / "mine.toml", "\n".join(lines))


@FAST
@given(data=st.data(), text=st.sampled_from(TEXTS))
def test_a_text_with_lines_cut_doubled_swapped_and_characters_changed(data, text, tmp_path_factory):
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        k, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        act = data.draw(st.integers(0, 4))
        if act == 0:
            del lines[k]
        elif act == 1:
            lines.insert(other, lines[k])
        elif act == 2:
            lines[k], lines[other] = lines[other], lines[k]
        elif lines[k]:
            place = data.draw(st.integers(0, len(lines[k]) - 1))
            piece = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=2))
            lines[k] = lines[k][:place] + piece + lines[k][place + (act == 3) :]
    used(tmp_path_factory.mktemp("fuzz") / "mine.toml", "\n".join(lines))


KEYS = st.sampled_from(
    [
        *("views", "views.view_1", "views.view_1.blur", "views.view_1.operations", "views.views", "views.view_1.crop"),
        *("views.mean", "views.view_1.crop.scale", "views.view_1.blur.sigma", "companion", "companion.labelled.size"),
        *("schedule", "schedule.kind", "schedule.options", "optimizer", "optimizer.name", "backbone", "batch_norm"),
        *("backbone.options", "options", "options.temperature", "sources", "epochs", "precision", "variant"),
    ]
)


@FAST
@given(
    st.lists(
        st.tuples(KEYS | st.text(max_size=12), st.sampled_from(["=", "+="]), values.map(spelt) | words), max_size=3
    )
)
def test_any_setting(written):
    flags = Namespace(set=[f"{k}{sign}{v}" for k, sign, v in written if ":" not in v], operation=[], backbone=None)
    vars(flags).update(dict.fromkeys(("epochs", "batch_size", "image_size", "lr")))
    with suppress(UserError):
        tried(changed(RECIPES[0], flags))


@pytest.mark.parametrize("odd", [None, date(2026, 1, 1), b"", object(), float("nan"), {1: 2}, [[[]]]])
def test_values_of_no_kind_at_all(odd):
    for path, _ in leaves(to_plain(RECIPES[0])):
        plain = to_plain(RECIPES[0])
        group: Any = plain
        for name in path[:-1]:
            group = group[name]
        group[path[-1]] = odd
        with suppress(Fault):
            from_plain(plain, type(RECIPES[0].options))


def test_the_line_of_a_fault_is_that_of_its_key_in_every_recipe():
    for text in TEXTS[:1]:
        lines = text.splitlines()
        file = RecipeText("mine.toml", text)
        for path, _ in leaves(file.values):
            shown = lines[file.line(path[:3] if path[0] in ("views", "companion") else path[:2]) - 1]
            key = path[2] if path[0] in ("views", "companion") and len(path) > 2 else path[min(1, len(path) - 1)]
            assert shown.strip('"').startswith((key, f"[{key}")) or f'"{key}"' in shown
