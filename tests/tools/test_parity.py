"""tools.parity: it must find equal executors equal, notice one that is off, and judge draws as scipy does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.draw import draw
from saccade.pipelines.operations import Jitter
from saccade.pipelines.views import Crop, Views
from saccade.tools import parity
from saccade.tools.parity_cases import method_recipes, operations, tolerance
from saccade.tools.parity_draws import SIGNIFICANT, binomial, chi_squared, compare_draws, kolmogorov_smirnov
from tests.present import present


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return parity.make_sources(tmp_path_factory.mktemp("parity"), None, 2)


def some(size: int) -> dict[str, Views]:
    return {
        name: recipe
        for name, recipe in operations(size).items()
        if name in ("crop bicubic", "jitter, any order", "derived view")
    }


def test_every_executor_is_within_its_tolerance(sources):
    rows, worst = parity.compare(sources, some(16), some(64))
    assert {row.executor for row in rows} >= {"resident", "ffcv", "pil"} and len(rows) >= 9
    assert not [row for row in rows if row.excess > 1]
    assert parity.picture(present(worst)).size == (3 * 344 + 8, 380)


def test_executor_that_is_off_is_noticed_and_pictured(sources, monkeypatch):
    def off(source, recipe):
        batch = parity.render_with_pil(source, recipe)
        for view in batch.views.values():
            view[1, :, 5, 7] += 0.2
        return batch

    monkeypatch.setattr(parity, "executors", lambda: {"dali": ("photos", off)})
    (row,), worst = parity.compare(sources, {}, {"crop bilinear": operations(64)["crop bilinear"]})
    assert row.excess > 1 and abs(row.largest - 51) < 1.5 and "image 1" in worst.title
    map_of_differences = np.asarray(parity.picture(present(worst), cell=64))[40:104, 8 + 2 * 72 : 8 + 2 * 72 + 64]
    assert tuple(map_of_differences[5, 7]) == (255, 255, 255) and map_of_differences.mean() < 5


def test_other_parameters_are_an_error_and_no_difference_of_pixels(sources, monkeypatch):
    def other(source, recipe):
        batch = parity.render_with_pil(source, recipe)
        params = draw(recipe, 1, 0, batch.index, batch.params["view"].source)
        return parity.Batch(batch.views, params, batch.index, None)

    monkeypatch.setattr(parity, "executors", lambda: {"dali": ("photos", other)})
    with pytest.raises(UserError, match="dali drew other parameters"):
        parity.compare(sources, {}, {"flip": operations(64)["crop bilinear"]})


def test_command_writes_table_json_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "operations", some)
    monkeypatch.setattr(parity, "method_recipes", lambda low, high: {})
    monkeypatch.setattr(parity, "_PHOTO", 48)
    for k in range(3):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(
            tmp_path / f"{k}.jpg"
        )
    assert (
        parity.main(
            [
                "--data",
                str(tmp_path),
                "--images",
                "2",
                "--json",
                str(tmp_path / "p.json"),
                "--picture",
                str(tmp_path / "p.png"),
            ]
        )
        == 0
    )
    content = json.loads((tmp_path / "p.json").read_text())
    assert {row["operation"] for row in content["pixels"]} == set(some(48)) and len(content["draws"]) == 15
    assert all(row["reason"] and row["mean"] <= row["allowed_mean"] for row in content["pixels"])
    assert Image.open(tmp_path / "p.png").width > 1000
    shown = capsys.readouterr().out
    assert "all within tolerance" in shown and "crop bicubic" in shown and "Kolmogorov-Smirnov" in shown


def test_every_method_has_a_recipe_for_photos_and_small_images():
    photos, small = method_recipes(65, 1024), method_recipes(1, 64)
    assert {name.split("/")[0] for name in photos} >= {
        "resa",
        "ressl",
        "rsa",
        "simclr",
    } and "ressl/imagenet-5crop" in photos
    assert {name.split("/")[0] for name in small} >= {"cacr", "resa", "ressl", "rsa", "simclr"}
    assert all(tolerance("dali", name).reason for name in photos)


def test_draws_are_torchvisions():
    assert not [test for test in compare_draws(samples=2000) if test.p < SIGNIFICANT]


@pytest.mark.parametrize("changed", [{"crop": Crop((0.25, 1.0))}, Jitter(0.5, 0.4, 0.2, 0.1), {"flip": 0.6}])
def test_draws_that_differ_are_noticed(monkeypatch, changed):
    from dataclasses import replace

    from saccade.tools import parity_draws

    def other(recipe, *args):
        view = recipe["view"]
        view = replace(view, **changed) if isinstance(changed, dict) else view.replaced("jitter", changed)
        return draw(Views((view,)), *args)

    monkeypatch.setattr(parity_draws, "draw", other)
    assert [test for test in compare_draws(samples=4000) if test.p < SIGNIFICANT]


def test_statistics_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(900, generator=generator), torch.rand(700, generator=generator) ** 1.1
    expected = stats.ks_2samp(a.double().numpy(), b.double().numpy(), method="asymp")
    statistic, p = kolmogorov_smirnov(a, b)
    assert abs(statistic - expected.statistic) < 1e-9 and abs(p - expected.pvalue) < 0.02
    c, d = torch.randint(24, (900,), generator=generator), torch.randint(24, (700,), generator=generator)
    table = np.stack([np.bincount(c, minlength=24), np.bincount(d, minlength=24)])
    expected = stats.chi2_contingency(table, correction=False)
    assert np.allclose(chi_squared(c, d, 24), (expected.statistic, expected.pvalue))
    assert abs(binomial(530, 1000, 0.5)[1] - stats.binomtest(530, 1000, 0.5).pvalue) < 0.005


def test_pixels_without_encoded_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="image files or tar shards"):
        parity.main(["--data", str(tmp_path / "x.npz")])
