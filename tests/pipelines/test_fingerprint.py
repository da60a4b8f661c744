"""A resumed run is given the images it was started with, or says in what they are others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.pipelines.sources import ArraySource, FolderSource, Source
from saccade.pipelines.sources.fingerprint import CONTENT, difference, fingerprint, spread
from saccade.pipelines.sources.mixed import mixed

IMAGES = np.random.default_rng(0).integers(0, 256, (160, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, image in enumerate(IMAGES[:40]):
        place = tmp_path / "photos" / f"class_{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:02d}.png", compress_level=0)  # all of one size
    return tmp_path / "photos"


def told(before: Source, now: Source) -> str | None:
    return difference(fingerprint(before), fingerprint(now), now)


def test_all_but_eight_images_replaced_are_seen():
    others = IMAGES[::-1].copy()
    kept = np.linspace(0, 159, 8).astype(int)
    others[kept] = IMAGES[kept]
    before, now = ArraySource("x", IMAGES), ArraySource("x", others)
    assert before.identity() == now.identity()
    assert told(before, now) == "other 152 of 160 that were looked at, x[1] for one"


def test_the_same_images_elsewhere_are_the_same(folder, tmp_path):
    before = FolderSource(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert told(before, FolderSource(tmp_path / "moved")) is None
    assert told(before, ArraySource("x", np.stack([before.read(i) for i in range(40)]), before.labels)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.rename(p.with_name("03x.png")), "other names"),
        (
            lambda p: Image.fromarray(IMAGES[90]).save(p, compress_level=0),
            "1 of 40 that were looked at, class_1/03.png",
        ),
        (lambda p: Image.fromarray(IMAGES[90][:4]).save(p), "other sizes, 1 of 40"),
    ],
)
def test_one_changed_file_is_told(folder, change, words):
    before = fingerprint(FolderSource(folder))
    change(folder / "class_1" / "03.png")
    now = FolderSource(folder)
    found = difference(before, fingerprint(now), now)
    assert found is not None and words in found


def test_what_cannot_be_read_for_a_while_is_no_other_image(folder):
    before = fingerprint(FolderSource(folder))
    before["content"][3] = None
    now = FolderSource(folder)
    assert difference(before, fingerprint(now), now) is None


def test_parts_of_a_mixture_in_another_order_are_told():
    one, other = ArraySource("one", IMAGES[:80]), ArraySource("other", IMAGES[80:])
    found = told(mixed([one, other], [1, 1]), mixed([other, one], [1, 1]))
    assert found is not None and "160 of 160" in found


def test_its_cost_does_not_grow_with_the_set():
    assert len(spread(10_000_000, CONTENT)) == CONTENT and spread(3, CONTENT) == [0, 1, 2]
