"""Drawing is a pure function, and its numbers are distributed as torchvision's own."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import ColorJitter, RandomResizedCrop

from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.blur import stec_blur
from saccade.pipelines.order import Order
from saccade.pipelines.stream import mix64, stream_key, uniform
from saccade.pipelines.views import CentreCrop, Crop, View, Views
from tests.distributed import dealt, run_ranks
from tests.present import present

OPERATIONS = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(), Solarise(0.2))
FULL = View("weak", 32, Crop((0.08, 1.0)), operations=OPERATIONS)
RECIPE = Views((FULL, View("other", 32, Crop((0.2, 1.0)), operations=(Jitter(0.8, 0.8, 0.8, 0.2),))))
P_MIN = 1e-4  # a fixed seed: these tests either always pass or always fail


def sizes(n: int, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(n, 2)


def same(a: ViewParams, b: ViewParams) -> bool:
    return all(torch.equal(x, b.columns()[name]) for name, x in a.columns().items())


@pytest.fixture(scope="module")
def many() -> ViewParams:
    return draw(RECIPE, 3, 1, torch.arange(20_000), sizes(20_000))["weak"]


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("backwards", [False, True])
def test_parameters_do_not_depend_on_batch_size_or_order(batch, backwards):
    index = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    whole = draw(RECIPE, 5, 2, index, sizes(200))
    chunks = list(index.split(batch))
    drawn = [draw(RECIPE, 5, 2, chunk, sizes(len(chunk))) for chunk in (chunks[::-1] if backwards else chunks)]
    drawn = drawn[::-1] if backwards else drawn
    for name in RECIPE.names:
        assert same(ViewParams.cat([d[name] for d in drawn]), whole[name])


def test_a_view_is_drawn_as_it_would_be_without_the_others():
    look = (Jitter(), Grey(0.3), Blur(0.5), Jitter(p=0.3), Grey(0.1))
    weak = View("weak", 32).times(2)
    strong = tuple(View(f"strong_{i}{j}", 32, operations=look, parent=f"weak_{i}") for i in (1, 0) for j in (0, 1))
    recipe = Views((*weak, *strong, *View("small", 16, Crop((0.05, 0.2)), operations=look).times(3)))
    index = torch.randperm(50)
    drawn = draw(recipe, 3, 7, index, sizes(50))
    assert tuple(drawn) == recipe.names
    for view in recipe:
        alone = Views((view,) if view.parent is None else (recipe[view.parent], view))
        assert same(drawn[view.name], draw(alone, 3, 7, index, sizes(50))[view.name])
    assert not torch.equal(drawn["small_0"].box, drawn["small_1"].box)
    assert torch.equal(drawn["strong_01"].box, drawn["weak_0"].box)


def _drawn_on_rank(rank: int, world_size: int) -> list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
    order = Order(64, 16, seed=9, rank=rank, world_size=world_size)
    shards = order.batches(epoch=4)
    return [(s, tuple(draw(RECIPE, 9, 4, s, sizes(len(s)))["weak"].columns().values())) for s in shards]


def test_parameters_do_not_depend_on_the_number_of_processes():
    alone = _drawn_on_rank(0, 1)
    together = run_ranks(_drawn_on_rank_in_group, world_size=2)
    for step, (index, fields) in enumerate(alone):
        assert torch.equal(torch.cat([ranks[step][0] for ranks in together])[dealt(16)], index)
        for k, field in enumerate(fields):
            assert torch.equal(torch.cat([ranks[step][1][k] for ranks in together])[dealt(16)], field)


def _drawn_on_rank_in_group() -> list:
    return _drawn_on_rank(torch.distributed.get_rank(), torch.distributed.get_world_size())


@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view"])
def test_parameters_depend_on(change):
    index = torch.arange(500)
    base = draw(RECIPE, 0, 0, index, sizes(500))
    other = {
        "seed": lambda: draw(RECIPE, 1, 0, index, sizes(500))["weak"],
        "epoch": lambda: draw(RECIPE, 0, 1, index, sizes(500))["weak"],
        "index": lambda: draw(RECIPE, 0, 0, index + 500, sizes(500))["weak"],
        "view": lambda: draw(Views(FULL.times(2)), 0, 0, index, sizes(500))["weak_1"],
    }[change]()
    equal = (base["weak"].box == other.box).all(1).float().mean()
    assert equal < 0.05
    correlation = torch.corrcoef(torch.stack([base["weak"].box[:, 2].float(), other.box[:, 2].float()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(500)


def test_adding_a_view_leaves_the_others_as_they_were():
    index = torch.arange(50)
    alone = draw(Views((FULL,)), 0, 0, index, sizes(50))["weak"]
    assert same(alone, draw(RECIPE, 0, 0, index, sizes(50))["weak"])


def test_derived_view_shares_crop_and_flip_and_draws_its_own_colours():
    recipe = Views(
        (View("weak", 32), View("aggressive", 32, operations=(Jitter(0.4, 0.4, 0.4, 0.1, p=1.0),), parent="weak"))
    )
    drawn = draw(recipe, 0, 0, torch.arange(100), sizes(100))
    assert torch.equal(drawn["weak"].box, drawn["aggressive"].box)
    assert torch.equal(drawn["weak"].flip, drawn["aggressive"].flip)
    assert not drawn["weak"].chosen("jitter").any() and drawn["aggressive"].chosen("jitter").all()


def test_known_values_never_change():
    """The numbers of a published run: SplitMix64's reference output for seed 1234567, and one drawn sample."""
    state, expected = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for k, value in enumerate(expected):
        got = mix64(
            torch.tensor([(state + (k + 1) * 0x9E3779B97F4A7C15) % 2**64], dtype=torch.uint64).view(torch.int64)
        )
        assert got.item() % 2**64 == value
    assert stream_key(0, 0, 0) != stream_key(0, 0, 1) != stream_key(1, 0, 0)
    one = draw(RECIPE, 0, 0, torch.tensor([7]), sizes(1))["weak"]
    assert (one.box.tolist(), one.flip.tolist(), one.drawn["jitter"]["order"].tolist()) == KNOWN


KNOWN = ([[2, 22, 93, 90]], [False], [[2, 1, 0, 3]])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 128), (500, 60), (3, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.4)])
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    """500x60 exercises the ten tries and the fallback; 3x1 the smallest boxes."""
    n = 4000
    view = View("v", 32, Crop(scale))
    ours = draw(Views((view,)), 11, 0, torch.arange(n), sizes(n, height, width))["v"].box.numpy()
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    for column in range(4):
        assert ks_2samp(ours[:, column], [t[column] for t in theirs]).pvalue > P_MIN
    assert (ours[:, 0] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] >= 0).all() and (ours[:, 1] + ours[:, 3] <= width).all() and (ours[:, 2:] >= 1).all()


def test_colour_factors_are_distributed_as_torchvisions(many):
    jitter: Any = ColorJitter(0.4, 0.4, 0.4, 0.1)
    torch.manual_seed(0)
    theirs = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(5000)]
    chosen = many[many.chosen("jitter")].drawn["jitter"]
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert ks_2samp(chosen[name].numpy(), [t[k + 1] for t in theirs]).pvalue > P_MIN
    ours = torch.unique(chosen["order"], dim=0, return_counts=True)[1]
    assert len(ours) == 24 and chisquare(ours.numpy()).pvalue > P_MIN


def test_strong_jitter_stops_at_zero_as_torchvisions():
    view = View("v", 32, operations=(Jitter(1.5, 0.0, 0.0, 0.0, p=1.0),))
    drawn = draw(Views((view,)), 0, 0, torch.arange(4000), sizes(4000))["v"].drawn["jitter"]
    low, high = present(ColorJitter(1.5).brightness)
    assert kstest(drawn["brightness"].numpy(), "uniform", (low, high - low)).pvalue > P_MIN
    assert (drawn["contrast"] == 1).all() and (drawn["hue"] == 0).all()


@pytest.mark.parametrize(
    ("name", "p"), [("flip", 0.5), ("grey.chosen", 0.2), ("solarise.chosen", 0.2), ("jitter.chosen", 0.8)]
)
def test_choices_have_their_probability(many, name, p):
    share = many.columns()[name].float().mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / len(many))


def test_blur_sigma_is_uniform_where_blurred_and_zero_elsewhere(many):
    sigma = many.drawn["blur"]["sigma"]
    blurred = sigma[sigma > 0]
    assert torch.equal(sigma > 0, many.chosen("blur"))
    assert abs(len(blurred) / len(many) - 0.5) < 4 * math.sqrt(0.25 / len(many))
    assert kstest(blurred.numpy(), "uniform", (0.1, 1.9)).pvalue > P_MIN


def test_choices_are_independent(many):
    names = ("flip", "grey.chosen", "solarise.chosen", "jitter.brightness", "jitter.hue", "blur.sigma")
    columns = [many.columns()[name].float() for name in names]
    columns += [many.box[:, k].float() for k in range(4)]
    correlation = torch.corrcoef(torch.stack(columns))[:6]  # the crop's own four numbers do depend on each other
    off = correlation - torch.eye(len(columns))[:6]
    assert off.abs().max() < 5 / math.sqrt(len(many))


def test_uniform_has_no_gaps():
    stream = mix64(torch.arange(100_000))
    u = uniform(stream, 3)
    assert u.min() >= 0 and u.max() < 1 and kstest(u.numpy(), "uniform").pvalue > P_MIN
    bits = (u * 2**53).long()
    ones = torch.stack([(bits >> k) & 1 for k in range(53)]).float().mean(1)
    assert (ones - 0.5).abs().max() < 5 * math.sqrt(0.25 / len(u))


def test_centre_crop_is_the_centred_square():
    view = View("v", 32, crop=CentreCrop(0.875), flip=0.0)
    box = draw(Views((view,)), 0, 0, torch.arange(2), torch.tensor([[256, 320], [1, 1]]))["v"].box
    assert box.tolist() == [[16, 48, 224, 224], [0, 0, 1, 1]]


def test_drawing_leaves_global_generators_alone():
    torch.manual_seed(1), random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    draw(RECIPE, 0, 0, torch.arange(10), sizes(10))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_draws_of_before_there_were_operations_never_change():
    """Every column, to the bit, as it was drawn on 2026-11-25: published runs are made of these numbers."""
    full = View("view_1", 224, operations=(Jitter(0.8, 0.8, 0.8, 0.2), Grey(0.2), stec_blur(224), Solarise(0.2)))
    weak, pair = View("weak", 32, Crop((0.2, 1.0))), (Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2))
    strong = View("strong", 32, Crop((0.2, 1.0), interpolation="bicubic"), operations=(*pair, Blur(0.5), Solarise(0.2)))
    small = (*pair, Blur(1.0, (0.1, 2.0), 5), Solarise(0.2))
    colour = (Jitter(0.4, 0.4, 0.4, 0.1, p=1.0), Grey(0.2), Blur(0.5))
    recipes = {
        "stec": Views((full, replace(full.replaced("blur", None), name="view_2", flip=0.3))),
        "resa": Views((weak, strong, *View("small", 16, Crop((0.05, 0.14)), operations=small).times(2))),
        "rsa": Views((weak, View("aggressive", 32, parent="weak", operations=colour))),
        "odd": Views(
            (
                View("centre", 28, crop=CentreCrop(0.875), flip=0.0, operations=(Solarise(1.0),)),
                View(
                    "wild", 9, Crop((0.01, 1.0), (0.2, 5.0)), operations=(Jitter(1.5, 1.0, 0.0, 0.5, p=0.5), Grey(0.5))
                ),
            )
        ),
    }
    old_names = {"jitter.order": "jitter_order", "grey.chosen": "grey", "solarise.chosen": "solarise"}
    with np.load(Path(__file__).parent / "draws_2026_11_25.npz", allow_pickle=False) as file:
        old = {name: torch.from_numpy(file[name]) for name in file.files}
    compared = set()
    for key in old:
        if key.count("/") != 4:
            continue
        recipe, seed, epoch, view, _ = key.split("/")
        drawn = draw(recipes[recipe], int(seed), int(epoch), old["index"], old["source"])[view]
        for name, column in drawn.columns().items():
            before = f"{recipe}/{seed}/{epoch}/{view}/{old_names.get(name, name.rpartition('.')[2])}"
            if before in old:
                assert torch.equal(column, old[before]) and column.dtype == old[before].dtype, (before, name)
                compared.add(before)
    assert len(compared) == 3 * 73 and {name.rpartition("/")[2] for name in compared} == {
        *("box", "flip", "brightness", "contrast", "saturation", "hue", "jitter_order", "grey", "sigma", "solarise")
    }


def test_a_second_operation_of_a_name_draws_its_own_and_moves_no_other():
    twice = replace(FULL, operations=(Blur(), *OPERATIONS, Grey(0.5)))
    before, after = (draw(Views((v,)), 0, 0, torch.arange(4000), sizes(4000))["weak"] for v in (FULL, twice))
    assert list(after.drawn) == ["blur", "jitter", "grey", "blur_2", "solarise", "grey_2"]
    for column in ("jitter.hue", "jitter.order", "grey.chosen", "blur.sigma", "solarise.chosen"):
        assert torch.equal(before.columns()[column], after.columns()[column]), column
    sigmas = torch.stack([after.drawn["blur"]["sigma"], after.drawn["blur_2"]["sigma"]])
    assert abs(torch.corrcoef(sigmas)[0, 1]) < 5 / math.sqrt(4000)
    assert abs(after.chosen("grey_2").float().mean() - 0.5) < 4 * math.sqrt(0.25 / 4000)
