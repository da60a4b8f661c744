"""docs/add_an_operation.md keeps its word: its listing, in a file outside, is an operation everywhere."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import train
from saccade.base import own
from saccade.losses.registry import find_method
from saccade.pipelines.build import build_pipeline, dali_installed
from saccade.pipelines.operations.registry import find_operation, known_operations
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource
from saccade.runs.settings import with_settings
from saccade.tools import parity, preview
from saccade.tools.parity_cases import cases_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_an_operation.md"


@pytest.fixture(scope="module")
def quantise(tmp_path_factory) -> str:
    """The page's listing as a file in an empty folder, as --set names it."""
    (listing,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(listing.splitlines()) <= 25
    file = tmp_path_factory.mktemp("outside") / "quantise.py"
    file.write_text(listing)
    return f"{file}:Quantise"


@pytest.mark.parametrize("pipeline", ["resident", "reference", "ffcv", "dali", "threads"])
def test_one_file_is_trained_with_on_every_executor(quantise, pipeline, tmp_path):
    if pipeline == "dali" and not dali_installed():
        pytest.skip("NVIDIA DALI is not installed")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    data = tmp_path / "photos"
    data.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(data / f"{k:02}.jpg")
    if pipeline == "ffcv":
        from saccade.tools.convert import main as convert

        folder, data = data, tmp_path / "photos.beton"
        assert convert([str(folder), str(data)]) == 0
    given = [f"views.view_1.operations+={quantise}", "views.view_1.quantise.bits=1,3", "views.view_1.quantise=1"]
    out = tmp_path / "run"
    flags = [
        "--data",
        str(data),
        "--image-size",
        "32",
        "--backbone",
        "test_resnet",
        "--steps",
        "2",
        "--batch-size",
        "8",
    ]
    more = ["--pipeline", pipeline, "--device", "cpu", "--workers", "1", "--eval-every", "0", "--out", str(out)]
    assert train.main([*flags, *more, *(word for setting in given for word in ("--set", setting))]) == 0
    (view, _) = json.loads((out / "config.json").read_text())["recipe"]["views"]["views"]
    assert view["operations"][-1] == {"name": "quantise", "p": 1.0, "bits": [1, 3]}


def test_every_executor_agrees_with_reference_on_it(quantise, capsys):
    assert parity.main(["--operation", quantise, "--images", "2"]) == 0
    shown = capsys.readouterr().out
    assert "quantise" in shown and "all within tolerance" in shown


def test_parity_notices_an_executor_that_leaves_it_out(quantise, tmp_path, monkeypatch):
    sources = parity.make_sources(tmp_path, None, 2)
    cases = cases_of([find_operation(quantise)], 32)
    bare = cases["quantise"]["view"].replaced("quantise", None)

    def without(source, recipe):
        batch = parity._first(build_pipeline(source, recipe, Order(2, 2, shuffle=False), "resident"))
        views = parity._first(build_pipeline(source, type(recipe)((bare,)), Order(2, 2, shuffle=False), "resident"))
        return parity.Batch(views.views, batch.params, batch.index, None)

    monkeypatch.setattr(parity, "executors", lambda: {"resident": ("small", without)})
    (row,), _ = parity.compare(sources, cases, {})
    assert row.excess > 1


def test_it_is_previewed_with_its_caption(quantise, tmp_path, monkeypatch):
    drawn = []
    from saccade.runs import pictures

    describe = pictures.describe
    monkeypatch.setattr(pictures, "describe", lambda *a: drawn.extend(found := describe(*a)) or found)
    flags = ["--rows", "2", "--out", str(tmp_path / "views.png"), "--set", "views.view_1.quantise=1"]
    assert preview.main([*flags[:4], "--set", f"views.view_1.operations+={quantise}", *flags[4:]]) == 0
    assert sum(bool(re.search(r"quantise [2-5]$", line)) for line in drawn) == 2


def test_draws_are_those_of_its_name_and_move_no_other(quantise):
    recipe = find_method("stec").recipe("cifar10", 32)
    more = with_settings(recipe, [f"views.view_1.operations+={quantise}"])
    source = ArraySource("noise", np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))
    plain, with_it = (
        next(iter(build_pipeline(source, r.views, Order(64, 64), "resident"))).params["view_1"] for r in (recipe, more)
    )
    for name, column in plain.columns().items():
        assert torch.equal(column, with_it.columns()[name])
    bits = with_it.drawn["quantise"]["bits"]
    assert bits.min() >= 2 and bits.max() <= 5 and 16 < with_it.chosen("quantise").sum() < 48


def test_a_package_offers_it_by_an_entry_point(quantise, monkeypatch):
    kind = find_operation(quantise)
    entry = SimpleNamespace(name="quantise", value="somewhere:Quantise", load=lambda: kind)
    monkeypatch.setattr(own, "entry_points", lambda group: [entry] if group == "saccade.operations" else [])
    known_operations.cache_clear()
    try:
        assert find_operation("quantise") is kind
        recipe = with_settings(find_method("stec").recipe("cifar10", 32), ["views.view_2.quantise.p=0.25"])
        assert recipe.views["view_2"]["quantise"].p == 0.25
    finally:
        monkeypatch.undo()
        known_operations.cache_clear()


@pytest.mark.parametrize(
    ("settings", "operations"),
    [
        (["views.weak.blur.p=0.3"], ["blur"]),
        (["views.weak.grey=0.1", "views.weak.jitter.hue=0.2"], ["jitter", "grey"]),
        (
            ["views.weak.operations+=erase", "views.weak.operations+=erase", "views.weak.erase_2.fill=0.5"],
            ["erase", "erase_2"],
        ),
        (["views.weak.solarise=0.2", "views.weak.solarise=none"], []),
    ],
)
def test_set_switches_operations_on_and_off_by_name(settings, operations):
    recipe = with_settings(find_method("resa").recipe("cifar10", None), settings)
    assert list(recipe.views["weak"].keyed) == operations
    assert all(asdict(recipe.views["weak"])["operations"][k]["name"] in key for k, key in enumerate(operations))
