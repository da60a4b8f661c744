"""tools.bench --peers: other libraries do the work that they are timed at, or it is said what they leave out."""

import os
import re
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.loader_profile import STAGES, profile, up_to
from saccade.base.errors import UserError
from saccade.pipelines.build import EXECUTORS
from saccade.pipelines.operations import Jitter, Solarise
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.views import View, Views
from saccade.tools import bench
from saccade.tools.benchmark import contenders
from saccade.tools.benchmark.baseline import ManyCrops
from saccade.tools.benchmark.forecast import LoaderCost, Part
from saccade.tools.benchmark.measure import measure
from saccade.tools.benchmark.peers.materials import Materials, prepare, steps_of
from saccade.tools.benchmark.peers.process import PeerProcess
from saccade.tools.benchmark.peers.registry import PEERS, Peer, chosen
from saccade.tools.benchmark.rows import notes, table
from saccade.tools.benchmark.suites import Work, as_betons, noise, photo_recipe
from tests.present import present

CPU, SIZE, IMAGES = torch.device("cpu"), 32, 64
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def photo(k: int) -> Image.Image:
    """Orange, brighter to the right, under noise: a flip, a crop, a hue and a blur can all be read from it."""
    ramp = np.linspace(70, 180, SIZE)[None, :, None] * np.array([1.0, 0.75, 0.5])
    grain = np.random.default_rng(k).normal(0, 18, (SIZE, SIZE, 1))
    return Image.fromarray((ramp + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    folder = tmp_path_factory.mktemp("photos") / "a"
    folder.mkdir()
    for k in range(IMAGES):
        photo(k).save(folder / f"{k:02d}.jpg", quality=97, subsampling=0)
    source = FolderSource(folder.parent)
    return Work("photos", photo_recipe(SIZE), "d", source, IMAGES, as_betons(source, folder.parent.parent))


@pytest.fixture(scope="module")
def materials(work, tmp_path_factory) -> Materials:
    scratch = tmp_path_factory.mktemp("peers")
    made = prepare(work, scratch, workers=1)
    return replace(made, betons={kind: str(beton.reader.path) for kind, beton in work.betons.items()})


def statistics(views: list[np.ndarray], recipe: Views) -> dict[str, float]:
    """Shares and spreads of many views that tell which operations were done to them."""
    mean, std = (np.array(values)[:, None, None] for values in (recipe.mean, recipe.std))
    image = np.concatenate(views) * std + mean
    luma, size = image.mean(1), image.shape[-1]
    slope = luma[:, :, size // 2 :].mean((1, 2)) - luma[:, :, : size // 2].mean((1, 2))
    detail = np.abs(luma[:, 1:] - luma[:, :-1]).mean((1, 2))
    red, green, blue = image.mean((2, 3)).T
    grey = np.abs(image - luma[:, None]).max((1, 2, 3)) < 0.02
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)[~grey]
    return {
        "low": image.min(),
        "high": image.max(),
        "flipped": (slope < 0).mean(),
        "slope": np.abs(slope).mean(),
        "grey": grey.mean(),
        "brightness": luma.mean((1, 2)).std(),
        "detail": detail.mean(),
        "detail varies": detail.std() / detail.mean(),
        "hue varies": hue.std(),
    }


def without(recipe: Views, names: tuple[str, ...]) -> Views:
    """The recipe as a peer has it that lacks these operations."""
    views = []
    for view in recipe:
        kept = [o for o in view.operations if o.name not in names]
        kept = [replace(o, hue=0.0) if "hue" in names and isinstance(o, Jitter) else o for o in kept]
        views.append(replace(view, operations=tuple(kept)))
    return replace(recipe, views=tuple(views))


@lru_cache
def expected(recipe: Views) -> dict[str, float]:
    """Torchvision's views of the same photos."""
    torch.manual_seed(0)
    crops = ManyCrops(recipe, "torchvision-pil")
    made = [crops(photo(k % IMAGES)) for k in range(3 * IMAGES)]
    return statistics([torch.stack(views).numpy() for views in zip(*made, strict=True)], recipe)


def check(views: list[np.ndarray], peer: Peer, recipe: Views) -> None:
    found, wanted = statistics(views, recipe), expected(without(recipe, peer.without))
    assert found["low"] > -0.01 and 0.6 < found["high"] < 1.01
    for name in ("flipped", "grey"):
        assert found[name] == pytest.approx(wanted[name], abs=0.12), name
    for name, share in {"slope": 0.2, "brightness": 0.35, "detail": 0.35, "detail varies": 0.4}.items():
        assert found[name] == pytest.approx(wanted[name], rel=share), name
    assert found["hue varies"] == pytest.approx(wanted["hue varies"], rel=0.5, abs=0.06), "hue varies"


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_makes_the_views_that_torchvision_makes(materials, name):
    peer = PEERS[name]
    if not peer.version:
        pytest.skip(f"{peer.package} is not installed")
    process = PeerProcess(peer, materials)
    try:
        batches = [process.sample() for _ in range(3)]
        for _ in range(2):  # two turns
            sizes, began = process.sizes(), time.monotonic()
            assert next(sizes) == materials.batch_size
            sizes.close()
        assert time.monotonic() - began < 10  # FFCV compiles half a minute, once
    finally:
        process.close()
    for views in batches:
        assert [view.shape for view in views] == [(IMAGES, 3, SIZE, SIZE)] * 2
        assert all(view.dtype == np.float32 and np.isfinite(view).all() for view in views)
        assert not np.array_equal(views[0], views[1])
    check([view for views in batches for view in views], peer, materials.recipe)


def test_one_of_them_does_the_work_and_what_was_left_out_would_be_seen(materials):
    alone = replace(materials, workers=0)
    views, peer = PEERS["webdataset"].views(alone), PEERS["webdataset"]
    made = [view.numpy() for _ in range(3) for view in next(views)]
    check(made, peer, materials.recipe)
    for name in ("blur", "grey", "jitter"):  # the statistics tell each of them
        with pytest.raises(AssertionError):
            check(made, replace(peer, without=(name,)), materials.recipe)


def test_small_images_come_as_pixels_in_every_form(tmp_path):
    source = noise(40, 16)
    recipe = photo_recipe(16)
    made = prepare(Work("cifar", recipe, "d", source, 8), tmp_path, workers=0)
    assert len(made) == 40 and np.array_equal(made.images, present(source.array())) and set(made.betons) == {"raw"}
    views = next(PEERS["webdataset"].views(made))
    assert [tuple(view.shape) for view in views] == [(8, 3, 16, 16)] * 2


def missing(_: Materials):
    raise AssertionError("it is not installed")


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(work, tmp_path):
    peer = Peer(missing, "no_such_module", "no-such-package")
    rows = measure(contenders.peers(work, {"new": peer}, tmp_path), CPU, 1, 0.0, tolerant=True)
    assert [(row.kind, row.executor, row.rounds) for row in rows] == [("peer", "new", 0)]
    assert notes(rows) == ["new, photos: not installed; pip install 'saccade[peers]'"]
    assert " - " in table(rows).splitlines()[1]


def dying(_: Materials):
    os._exit(3)


def failing(_: Materials):
    raise ValueError("no such decoder")


@pytest.mark.slow
def test_a_peer_that_fails_or_dies_is_told_and_the_others_are_measured(materials):
    for views, words in ((dying, "its process ended"), (failing, "ValueError: no such decoder")):
        with pytest.raises(UserError, match=words):
            PeerProcess(Peer(views, "torch", "torch"), materials).sample()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "kornai"], "did you mean kornia"),
        (["--suites", "photo"], "did you mean photos"),
        (["--peers", "--method", "stec"], "give yours by --cifar or --photos"),
    ],
)
def test_bad_input_is_one_clear_sentence(flags, words):
    with pytest.raises(UserError, match=words):
        bench.main(flags)


def test_a_profiles_stages_are_the_recipe_and_what_comes_before_each_operation(work):
    names = [[[o.name for o in view.operations] for view in up_to(work.recipe, k)] for k in range(len(STAGES))]
    assert names == [[list(STAGES[1 : k + 1])] * 2 for k in range(len(STAGES))]


@pytest.mark.slow
def test_a_profile_has_the_cost_of_every_stage_of_every_loader(work):
    found = profile(work, 1, 1)
    assert set(found) >= {"ffcv jpg", "ffcv raw"} and all(len(stages) == len(STAGES) for stages in found.values())
    assert all(stages[0] > 0 for stages in found.values()) and found["ffcv jpg"][0] > found["ffcv raw"][0]


def test_an_operation_that_peers_are_not_compared_on_is_refused():
    with pytest.raises(UserError, match="jitter, grey and blur in this order"):
        steps_of(View("v", 32, operations=(Solarise(),)))


@pytest.mark.parametrize("name", chosen("all"))
def test_who_asks_why_not_x_finds_the_row(name):
    assert re.search(rf"^\| `{name}` \|", PAGE.read_text(), re.MULTILINE)


def test_a_row_of_what_was_decoded_once_reads_no_file_and_says_so(work, monkeypatch):
    once = replace(work, batch_size=30, is_decoded_once=True)  # 64 images: four of an epoch lie in no batch
    made = contenders.loaders(once, ("threads",), CPU, 1)
    named = {c.row.executor: c for c in made if c.row.kind == "loader"}
    assert list(named) == ["threads", "threads, cached"]

    def gone(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr(type(work.source.reader), "encoded", gone)
    rows = measure([named["threads, cached"]], CPU, 2, 0.05, tolerant=True)
    assert rows[0].images_per_second > 0 and "decoded once" in notes(rows)[0]
    rows = measure([named["threads"]], CPU, 1, 0.0, tolerant=True)
    assert "a file was read" in rows[0].more["error"]


def test_a_cache_that_does_not_hold_the_set_is_a_row_that_says_why(work, monkeypatch):
    monkeypatch.setattr("saccade.pipelines.cache.available_memory", lambda: 2 * 40 * 3 * SIZE**2)
    once = replace(work, is_decoded_once=True)
    rows = [c.row for c in contenders.loaders(once, ("threads",), CPU, 1, skipped={})]
    assert "error" not in rows[0].more and rows[1].more["error"] == "memory holds 40 of the 64 images decoded"
    assert rows[1] in measure([contenders.Contender(rows[1], lambda: iter(()))], CPU, 1, 0.0)  # and is not run


WORKS = {"cifar": ("threads", "resident", "reference"), "photos": ("threads", "resident", "dali", "ffcv", "reference")}


@pytest.mark.parametrize("suites", ["cifar", "photos", "cifar,photos"])
@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "auto"])
def test_an_executor_is_left_out_of_the_work_it_cannot_do_and_an_error_where_it_can_do_none(
    work, monkeypatch, tmp_path, name, suites
):
    works = {"cifar": Work("cifar", photo_recipe(16), "d", noise(40, 16), 8), "photos": work}
    monkeypatch.setattr(bench, "build_suite", lambda suite, *_, **__: works[suite])
    monkeypatch.setattr(bench, "_steps", lambda *_: Part(list, []))
    monkeypatch.setattr(bench, "loader_cost", lambda *_: LoaderCost(0.0, 0.0, 0.0))
    flags = bench.parser().parse_args(["--executors", name, "--suites", suites])
    able = [suite for suite in suites.split(",") if name in WORKS[suite]]
    if not able:
        with pytest.raises(UserError, match=f"--executors {name}: it "):
            bench._suites(flags, tmp_path, 1.0, CPU)
        return
    said = bench._suites(flags, tmp_path, 1.0, CPU).said
    unable = [suite for suite in suites.split(",") if suite not in able]
    assert [line.partition(": ")[0] for line in said] == [f"without {name}, {suite}" for suite in unable]
