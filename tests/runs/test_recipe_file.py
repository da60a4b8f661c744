"""A recipe file: what is published, whole and with its sources; read back equal, or refused in one sentence."""

import json
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from saccade import train
from saccade.base.errors import UserError
from saccade.losses.recipe import ScheduleSpec, TrainingRecipe
from saccade.losses.registry import find_method, methods
from saccade.pipelines.operations.erase import Erase
from saccade.pipelines.operations.registry import find_operation
from saccade.pipelines.operations.rotate import Rotate
from saccade.pipelines.views import CentreCrop, View, Views
from saccade.runs.choice import chosen_recipe, recipe_in
from saccade.runs.flags import check_flags, parse_flags
from saccade.runs.plain_recipe import to_plain
from saccade.runs.recipe_file import RecipeText, recipe_toml
from saccade.tools.recipes import main as recipes
from saccade.tools.recipes import recipe_names

ALL = [(method.name, name) for method in methods().values() for name in recipe_names(method)]


def written(recipe: TrainingRecipe, *heading: str) -> RecipeText:
    return RecipeText("mine.toml", recipe_toml(recipe, heading))


@pytest.mark.parametrize("method", methods())
def test_every_recipe_comes_back_equal_with_its_views_operations_and_notes_in_order(method):
    for name in recipe_names(find_method(method)):
        recipe = find_method(method).recipe(name, None)
        again = recipe_in(written(recipe, "a heading"), find_method(method), {})
        assert again == recipe, name
        assert again.views.names == recipe.views.names
        assert [list(view.keyed) for view in again.views] == [list(view.keyed) for view in recipe.views]


def test_what_no_published_recipe_has_comes_back_too():
    base = find_method("resa").recipe("cifar10", None)
    odd = View('a "view"\\n', 8, CentreCrop(0.5), 0.0, (Erase(), Rotate(), Erase(p=0.25, fill=1.0)))
    changed = replace(
        base,
        views=Views((odd, replace(odd, name="ünïcode", operations=())), (0.0, 1e-30, 1e30)),
        backbone=replace(base.backbone, options={"depths": [2, 2], "deep": {"x": None, "y.z": 'q"'}, "on": True}),
        schedule=ScheduleSpec("step_decay", {"milestones": (1.0, 2.5)}),
        optimizer=replace(base.optimizer, clip_norm=1.0),
        sources={"views.a b": 'said "so"\\', "all": "é" * 200},
        variant="1024",
    )
    assert recipe_in(written(changed), find_method("resa"), {}) == changed


def test_the_printed_file_has_the_sources_as_comments_and_trains_when_edited(tmp_path, capsys):
    assert recipes(["ressl", "cifar10", "--toml"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[lines.index("weight_decay = 0.0005") - 1].startswith("# the author in issue 11")
    assert lines[lines.index("epochs = 800") - 1].startswith("# ours: ")
    assert max(map(len, (line for line in lines if line.startswith("#")))) <= 120
    assert tomllib.loads(text)["views"]["contrastive"]["jitter"]["hue"] == 0.1
    for old, new in (
        ("t_teacher = 0.04", "t_teacher = 0.05"),
        ("queue_size = 4096", "queue_size = 64"),
        ("grey = {p = 0.2}", "solarise = 0.3\ngrey = {p = 0.2}\nblur_2 = {sigma = [1, 2]}"),
        ('name = "resnet18"', 'name = "test_resnet"'),
    ):
        assert old in text
        text = text.replace(old, new)
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    small = ["--data", str(tmp_path / "train.npz"), "--steps", "2", "--batch-size", "16", "--device", "cpu"]
    assert train.main(["--recipe", str(file), *small, "--set", "options.t_student=0.2", "--out", str(out)]) == 0
    recipe = json.loads((out / "config.json").read_text())["recipe"]
    assert (recipe["method"], recipe["options"]["t_teacher"], recipe["options"]["t_student"]) == ("ressl", 0.05, 0.2)
    strong = recipe["views"]["views"][1]["operations"]
    assert [o["name"] for o in strong] == ["jitter", "solarise", "grey", "blur", "blur"]
    assert strong[1]["p"] == 0.3 and strong[3]["sigma"] == [1.0, 2.0]


EDITS = [
    ("t_student = 0.1", "t_studnt = 0.1", r"line \d+: options.t_studnt = 0.1: .* t_student, .*did you mean t_student"),
    ("epochs = 800", 'epochs = "many"', r'line \d+: epochs = "many": that is no int; give a whole number'),
    ("epochs = 800", "epochs = 0", r"line \d+: epochs = 0: give 1 or more"),
    ("[options]", "[option]", r"line \d+: option: .*did you mean options"),
    ("p = 0.8}", "p = 1.8}", r"line \d+: views.contrastive.jitter.p = 1.8: .*a value from 0 to 1"),
    ("grey = {p = 0.2}", "greyy = {p = 0.2}", r"line \d+: views.contrastive.greyy: .*did you mean grey"),
    ("grey = {p = 0.2}", "grey = true", r"line \d+: views.contrastive.grey = true: that is an operation"),
    ("grey = {p = 0.2}", "grey = {\n", r"line \d+: that is no TOML"),
    ('name = "sgd"', 'name = "adm"', r'line \d+: optimizer.name = "adm": give lars, sgd, adam or adamw'),
    ('stem = "cifar"', 'stem = "cifr"', r'line \d+: backbone.stem = "cifr": .*did you mean cifar'),
    ('kind = "warmup_cosine"', 'kind = "step_decay"', r"line \d+: schedule.options.warmup_epochs = 5: step_decay has"),
    ('kind = "warmup_cosine"', 'kind = "cosin"', r'line \d+: schedule.kind = "cosin": .*did you mean cosine'),
    ('batch_norm = "split-8"', 'batch_norm = "split"', r'line \d+: batch_norm = "split": .* use local, sync or'),
    ("queue_size = 4096", "queue_size = 1979-05-27", r"line \d+: options.queue_size = 1979-05-27: that is no int"),
    ("queue_size = 4096", "queue_size = [4096]", r"line \d+: options.queue_size = \[4096\]: that is no int"),
    ("size = 32\ncrop", "crop", r"line \d+: views.weak: size must be given too"),
    ("lr_batch = 256\n", "", r"line \d+: optimizer: lr_batch must be given too"),
    ('protocol = "ressl"', 'protocol = "\\u001b[31m"', r"line \d+: protocol = .*cannot be printed"),
    ('method = "ressl"', 'method = "resl"', r'line 5: method = "resl": .*did you mean ressl'),
    ('method = "ressl"', "", r"method: give the method's name"),
    ("flip = 0.5", "flip = nan", r"line \d+: views.weak.flip = nan: .*give a value from 0 to 1"),
    ("momentum = 0.9\n", "momentum = 0.9\nmomentum = 0.9\n", r"line \d+: that is no TOML \(Cannot overwrite a value\)"),
]


@pytest.mark.parametrize(("old", "new", "words"), EDITS, ids=[new or old for old, new, _ in EDITS])
def test_a_fault_is_one_sentence_with_line_key_value_and_what_is_allowed(old, new, words, tmp_path):
    recipes_text = recipe_toml(find_method("ressl").recipe("cifar10", None), ("1", "2", "3"))
    assert old in recipes_text
    file = tmp_path / "mine.toml"
    file.write_text(recipes_text.replace(old, new, 1))
    with pytest.raises(UserError, match=words) as caught:
        check_flags(parse_flags(["--recipe", str(file)]))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_fault_names_the_first_line_of_a_value_of_several():
    text = recipe_toml(find_method("stec").recipe("cifar10", None), ("1",))
    changed = text.replace('predicts = ["crop", "flip"]', "# which\npredicts = [\n  'crop',\n\n  3.5,\n]")
    with pytest.raises(UserError) as caught:
        recipe_in(RecipeText("mine.toml", changed), find_method("stec"), {})
    line = 1 + changed.splitlines().index("predicts = [")
    assert f"mine.toml, line {line}: options.predicts" in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"method = \xff")
    (tmp_path / "large.toml").write_bytes(b"#" * 300_000)
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    (tmp_path / "bom.toml").write_text("\ufeffmethod = 3", encoding="utf-8")
    for name, words in (
        ("latin.toml", "cannot be read as text"),
        ("large.toml", "larger than 256 KiB"),
        ("deep.toml", "no TOML"),
        ("bom.toml", "line 1: method = 3"),
        ("none.toml", "--toml > .*none.toml makes one"),
        ("", "is a folder"),
    ):
        with pytest.raises(UserError, match=words):
            check_flags(parse_flags(["--recipe", f"{tmp_path}/{name}"]))


def test_the_method_is_that_of_the_file_and_a_contradiction_is_refused(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(recipe_toml(find_method("rsa").recipe("cifar10", None), ("1",)))
    assert chosen_recipe(parse_flags(["--recipe", str(file)])).method == "rsa"
    assert chosen_recipe(parse_flags(["--recipe", str(file), "--method", "rsa"])).method == "rsa"
    for more in (["--method", "resa"], ["--stec-base", "byol"]):
        with pytest.raises(UserError, match=r"method = .rsa.: --method .* says another one"):
            check_flags(parse_flags(["--recipe", str(file), *more]))
    half = chosen_recipe(parse_flags(["--recipe", str(file)]), 16)
    assert {view.size for view in half.views} == {16} and "image_size" in half.proposals


def test_an_operation_of_somebodys_own_in_a_file_runs_only_where_the_command_line_names_it(tmp_path):
    code, mark = tmp_path / "mine.py", tmp_path / "ran"
    code.write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from dataclasses import dataclass\nfrom saccade.pipelines.operations import Operation\n"
        "@dataclass(frozen=True)\nclass Tint(Operation):\n    p: float = 0.5\n"
        "    shade: tuple[float, float] = (0.1, 0.2)\n"
        "    def apply(self, image, drawn):\n        return image\n"
    )
    kind = find_operation(f"{code}:Tint")
    base = find_method("resa").recipe("cifar10", None)
    weak, strong = base.views
    weak = replace(weak, operations=(Erase(), kind(p=0.25), kind(shade=(0.0, 1.0))))  # type: ignore[call-arg]
    recipe = replace(base, views=replace(base.views, views=(weak, strong)))
    file = tmp_path / "mine.toml"
    file.write_text(recipe_toml(recipe, ()))
    mark.unlink()
    for name in [name for name in sys.modules if name.startswith("saccade_file_mine")]:
        del sys.modules[name]  # as in another process
    with pytest.raises(UserError, match=rf"views.weak.tint: it is {code}:Tint, which runs code; if you trust it"):
        check_flags(parse_flags(["--recipe", str(file)]))
    assert not mark.exists()
    again = chosen_recipe(parse_flags(["--recipe", str(file), "--operation", f"{code}:Tint"]))
    assert mark.exists() and to_plain(again) == to_plain(recipe)
    moved = tmp_path / "moved.py"
    code.rename(moved)
    elsewhere = chosen_recipe(parse_flags(["--recipe", str(file), "--operation", f"{moved}:Tint"]))
    assert list(elsewhere.views["weak"].keyed) == ["erase", "tint", "tint_2"]
