"""--cache: the views of a run without one, to the bit; nothing decoded twice; damage, limits and other processes."""

import os
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines import cache as caches
from saccade.pipelines import threads
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.cache import DiskCache
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource, FolderSource
from saccade.pipelines.views import Crop, View, Views
from saccade.tools.convert import main as convert
from tests.pipelines.files import picture, stored
from tests.present import present

RECIPE = Views((View("a", 24, Crop((0.2, 1.0))), View("b", 16, Crop((0.05, 0.2)))))
COUNT = 20


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(COUNT):
        image, exif = picture(k, side=64).resize((40 + k, 61 - k)), Image.Exif()
        exif[0x0112] = k % 9 or 1
        kind, options = ("PNG", {}) if k == 3 else ("JPEG", {"exif": exif, "quality": 90})
        (folder / f"{k:02}.jpg").write_bytes(stored(image, kind, **options))
    return folder


def epochs(source, count=1, **options: Any):
    order = Order(len(source), 5, seed=3)
    with build_pipeline(source, RECIPE, order, device="cpu", workers=2, **options) as pipeline:
        return [list(pipeline) for _ in range(count)]


def assert_equal(ones, others):
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.index, b.index)
            assert all(torch.equal(a.views[name], b.views[name]) for name in RECIPE.names)


def forbid(monkeypatch):
    def decoded_again(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(threads, "decode_upright", decoded_again)
    monkeypatch.setattr("saccade.pipelines.sources.source.Source.decode", decoded_again)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_later_epochs_decode_nothing_and_show_the_same_to_the_bit(photos, tmp_path, kind, monkeypatch):
    expected = epochs(FolderSource(photos), 3)
    order = Order(COUNT, 5, seed=3)
    asked = "ram" if kind == "ram" else f"disk:{tmp_path / 'kept'}"
    with build_pipeline(FolderSource(photos), RECIPE, order, device="cpu", workers=2, cache=asked) as pipeline:
        assert "threads" in pipeline.choice and "all 20 would take about 0.2 MB" in pipeline.choice
        first = list(pipeline)
        forbid(monkeypatch)
        assert_equal(expected, [first, list(pipeline), list(pipeline)])
    if kind == "disk":  # another run
        assert_equal(expected[:1], epochs(FolderSource(photos), 1, cache=asked))


def test_a_run_that_was_killed_in_its_first_epoch_goes_on_with_what_it_kept(photos, tmp_path, monkeypatch):
    asked, order = f"disk:{tmp_path / 'kept'}", Order(COUNT, 5, seed=3)
    stopped = build_pipeline(FolderSource(photos), RECIPE, order, device="cpu", cache=asked)
    batches = iter(stopped)
    next(batches), next(batches)
    assert len(stopped.cache) >= 10  # and it is not closed
    with build_pipeline(FolderSource(photos), RECIPE, order, device="cpu", cache=asked) as pipeline:
        assert len(pipeline.cache) >= 10 and "where 0 are" not in pipeline.choice
    expected = epochs(FolderSource(photos), 2)
    assert_equal(expected, epochs(FolderSource(photos), 2, cache=asked))
    stopped.close()


def test_other_images_of_the_same_names_are_decoded(photos, tmp_path):
    asked = f"disk:{tmp_path / 'kept'}"
    epochs(FolderSource(photos), cache=asked)
    (photos / "07.jpg").write_bytes(stored(picture(99, side=64).resize((47, 54)), "JPEG"))
    assert_equal(epochs(FolderSource(photos)), epochs(FolderSource(photos), cache=asked))


@pytest.mark.parametrize("damage", ["half written", "another place", "cut short"])
def test_what_is_damaged_is_decoded_again(photos, tmp_path, damage):
    asked = f"disk:{tmp_path / 'kept'}"
    expected = epochs(FolderSource(photos), cache=asked)
    (data,), (table,) = (list((tmp_path / "kept").glob(f"*.{part}")) for part in ("pixels", "rows"))
    with open(data if damage != "another place" else table, "r+b") as file:
        if damage == "cut short":
            file.truncate(30_000)
        else:
            file.seek(20_000 if damage == "half written" else 24 + 32 * 7)
            file.write(bytes(range(1, 251)) * 40 if damage == "half written" else b"\xff" * 32)
    assert_equal(expected, epochs(FolderSource(photos), cache=asked))


@pytest.mark.parametrize("kind", ["folder", "tar", "jpg.beton"])
def test_photos_that_were_changed_in_place_are_decoded_again(photos, tmp_path, kind):
    """One of them, of the same size, which no sample of the names, sizes and bytes of a large set would meet."""
    data = photos if kind == "folder" else tmp_path / kind
    if kind != "folder":
        assert convert([str(photos), str(data), *(["--to", "wds"] if kind == "tar" else [])]) == 0
    asked = f"disk:{tmp_path / 'kept'}"
    before = epochs(open_data(str(data))[0], cache=asked)
    file = next(data.rglob("*.tar")) if kind == "tar" else photos / "09.jpg" if kind == "folder" else data
    old, then, whole = (photos / "09.jpg").read_bytes(), file.stat(), file.read_bytes()
    other = stored(picture(99, side=64).resize((49, 52)), "JPEG", quality=30).ljust(len(old), b"\0")
    assert len(other) == len(old) and whole.count(old) == 1
    file.write_bytes(whole.replace(old, other))
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns + 10**9))
    after = epochs(open_data(str(data))[0])
    with pytest.raises(AssertionError):
        assert_equal(before, after)
    key = next((tmp_path / "kept").glob("*.rows")).stem.removeprefix("saccade-")
    with mock.patch.object(caches, "_key", return_value=key):
        assert_equal(after, epochs(open_data(str(data))[0], cache=asked))


def test_a_full_cache_says_so_once_and_the_rest_is_decoded(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(caches, "_EXTENT", 1)
    expected = epochs(FolderSource(photos), 2)
    capsys.readouterr()
    for asked in ("ram", f"disk:{tmp_path / 'kept'}"):
        assert_equal(expected, epochs(FolderSource(photos), 2, cache=asked, cache_limit=6e-5))
        said = capsys.readouterr().err
        assert said.count("is full: ") == 1 and "of 20 images are in it, the others are decoded" in said
    (data,) = (tmp_path / "kept").glob("*.pixels")
    assert data.stat().st_size == 60_000


def test_two_processes_share_one(tmp_path):
    images = [np.asarray(picture(k, side=8 + k)) for k in range(COUNT)]
    one, two = (DiskCache(tmp_path, "x", COUNT, 1 << 30) for _ in range(2))
    for k, image in enumerate(images):
        (one if k % 3 else two).put(k, image)
        (two if k % 3 else one).put(k, image)  # is there already
    for cache in (one, two):
        assert len(cache) == COUNT and all(
            np.array_equal(present(cache.pixels(k)), image) for k, image in enumerate(images)
        )
        photos = present(cache.photos(np.arange(COUNT)))
        shown = [photo[0].permute(1, 2, 0).numpy() for photo in photos]
        assert all(np.array_equal(a, b) for a, b in zip(shown, images, strict=True))
    assert int(one._head["taken"][0]) == 2 * caches._EXTENT


def test_a_broken_image_is_told_and_replaced_as_without(photos, tmp_path):
    (photos / "05.jpg").write_bytes(b"broken")
    expected = epochs(plain := FolderSource(photos), 2)
    assert_equal(expected, epochs(source := FolderSource(photos), 2, cache="ram"))
    assert source.known_bad == plain.known_bad and "05.jpg" in source.known_bad


def test_jpegs_of_a_beton_are_cached_and_its_pixels_are_not(photos, tmp_path, monkeypatch):
    for name, flags in (("jpg", []), ("raw", ["--store", "raw"])):
        assert convert([str(photos), str(tmp_path / f"{name}.beton"), *flags]) == 0
    source, _ = open_data(str(tmp_path / "jpg.beton"))
    expected = epochs(source, 2)
    with build_pipeline(source, RECIPE, Order(COUNT, 5, seed=3), device="cpu", cache="ram") as pipeline:
        first = list(pipeline)
        forbid(monkeypatch)
        assert_equal(expected, [first, list(pipeline)])
    with pytest.raises(UserError, match=r"raw.beton holds pixels, which nobody decodes; leave it out"):
        epochs(open_data(str(tmp_path / "raw.beton"))[0], cache="ram")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"cache": "disk"}, "give ram, or disk:FOLDER"),
        ({"cache": "ram:x"}, "give ram, or disk:FOLDER"),
        ({"cache": "ssd"}, "give ram, or disk:FOLDER"),
        ({"cache": "ram", "cache_limit": 1e9}, "at most the .* that are free"),
        ({"cache": "ram", "cache_limit": 0}, "at most the .* that are free"),
        ({"cache_limit": 1}, "--cache-limit 1 goes with --cache"),
        ({"cache": "ram", "executor": "reference"}, "--cache goes with --pipeline threads, not reference"),
        ({"cache": "disk:{file}/x"}, "cannot be used"),
    ],
)
def test_what_cannot_be_is_one_sentence(photos, asked, says):
    asked = {k: v.format(file=photos / "00.jpg") if isinstance(v, str) else v for k, v in asked.items()}
    with pytest.raises(UserError, match=says):
        epochs(FolderSource(photos), 1, **asked)


def test_pixels_in_memory_need_no_cache():
    source = ArraySource("x", np.zeros((COUNT, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="x holds pixels"):
        epochs(source, cache="ram")


@pytest.mark.slow
def test_a_run_trains_with_one_and_goes_on_with_or_without(photos, tmp_path, capsys):
    small = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "10", "--eval-every", "0"]
    machine = ["--device", "cpu", "--workers", "1", "--no-report"]
    flags = [*small, *machine, "--data", str(photos), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert train.main([*flags, "--cache", f"disk:{tmp_path / 'kept'}"]) == 0
    assert f"cached in {tmp_path / 'kept'}, where 0 are" in capsys.readouterr().out
    assert train.main(["--resume", str(tmp_path / "run"), "--cache", "ram"]) == 0
